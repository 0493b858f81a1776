"""Reconstruction: roundings and steps are learned so that some nodes give what they give in the float model."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, fx

from fxcompress.errors import NotReadyError
from fxcompress.graph.edit import chain_under
from fxcompress.tune.soft_rounding import LearnedScale, SoftRounding
from fxcompress.tune.walk import Instead, Values, run

_BETA = 20.0, 2.0  # how sharply the penalty favours whole roundings, at its beginning and at the end


class Sample(NamedTuple):
    """One batch: the nodes to run on `values`, and for each of `outputs` what it should give."""

    nodes: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    values: Values
    targets: tuple[Tensor, ...]

    def cut(self, rows: Tensor) -> "Sample":
        """Return the same for some of the samples in the batch."""
        count = len(self.targets[0])
        values = {node: value[rows] if _is_batch(value, count) else value for node, value in self.values.items()}
        return self._replace(values=values, targets=tuple(target[rows] for target in self.targets))


class Recipe(NamedTuple):
    """How long and how fast to learn; the same as the arguments of the policy."""

    iterations: int
    learning_rate: float
    batch_size: int
    regularization: float
    warm_up: float
    seed: int
    scale_learning_rate: float = 0.0


def reconstruct(
    gm: fx.GraphModule,
    constants: Sequence[fx.Node],
    samples: Sequence[Sample],
    roundings: Mapping[fx.Node, SoftRounding],
    scales: Mapping[fx.Node, LearnedScale],
    recipe: Recipe,
    name: str,
) -> None:
    """Learn `roundings`, which stand for calls of weight quantizers, and `scales`, for those of activations.

    Minimizes the squared error of the outputs plus the regularization times the penalty of undecided roundings, with
    Adam (AdaRound, Nagel et al. 2020, equation 25; for blocks, BRECQ, Li et al. 2021, algorithm 1). The penalty sets
    in after the warm-up, with beta going from 20 to 2; the learning rate of scales falls to zero along a cosine, as
    in BRECQ's code. Raises NotReadyError, which tells the `name` of the layer or of the first of a block, where a
    batch holds no values, or the error is not finite.
    """
    if not all(target.numel() for sample in samples for target in sample.targets):
        raise NotReadyError(f"tune: a batch of data gives no values behind {name!r}")
    generator = torch.Generator().manual_seed(recipe.seed)
    instead = {**roundings, **scales}
    moving = [node for node in constants if any(one in roundings for one in (node, *chain_under(gm, node)))]
    fixed = {
        node: value.detach() if isinstance(value, Tensor) else value
        for node, value in run(gm, [node for node in constants if node not in moving], {}).items()
    }
    learned = dict.fromkeys(roundings.values())  # a weight may be read in several places
    groups = [{"params": [one.v for one in learned], "lr": recipe.learning_rate}]
    if scales:
        groups.append(
            {"params": [one.log_ratio for one in dict.fromkeys(scales.values())], "lr": recipe.scale_learning_rate}
        )
    optimizer = torch.optim.Adam(groups)
    falling: list[Callable[[int], float]] = [_constant, partial(_cosine, recipe.iterations)]  # scales come to rest
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, falling[: len(groups)])
    start = int(recipe.warm_up * recipe.iterations)
    by_rows = _takes_fewer(gm, [*moving, *samples[0].nodes], samples[0], fixed, instead, recipe.batch_size)
    for step in range(recipe.iterations):
        sample = samples[int(torch.randint(len(samples), (), generator=generator))]
        count = len(sample.targets[0])
        if by_rows and count > recipe.batch_size:
            sample = sample.cut(torch.randperm(count, generator=generator)[: recipe.batch_size])
        found = run(gm, [*moving, *sample.nodes], fixed | sample.values, instead)
        terms = [_error(found[node], target) for node, target in zip(sample.outputs, sample.targets, strict=True)]
        if step >= start and recipe.regularization:
            beta = _BETA[0] + (_BETA[1] - _BETA[0]) * (step - start) / max(recipe.iterations - start, 1)
            terms += [recipe.regularization * one.penalty(beta) for one in learned]
        total = torch.stack(terms).sum()
        if not total.isfinite():
            raise NotReadyError(
                f"tune: the squared error behind {name!r} is not finite: what enters is NaN, infinite or too large "
                "to be squared; leave out such data, or the layer from the rules"
            )
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        schedule.step()


def _constant(_: int) -> float:
    return 1.0


def _cosine(iterations: int, step: int) -> float:
    return (1 + math.cos(math.pi * step / iterations)) / 2


def _error(found: Tensor, target: Tensor) -> Tensor:
    """Return the squared error summed over channels, and averaged over samples and places."""
    channels = target.shape[1 if target.dim() > 3 else -1] if target.dim() else 1
    away = (found - target).to(torch.promote_types(target.dtype, torch.float32))
    return away.square().sum() * (channels / target.numel())


def _is_batch(value: object, count: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == count


@torch.no_grad()
def _takes_fewer(
    gm: fx.GraphModule, nodes: Sequence[fx.Node], sample: Sample, fixed: Values, instead: Instead, size: int
) -> bool:
    """Return whether the nodes give for some samples of a batch what they give for them in the whole batch."""
    count = len(sample.targets[0])
    if count <= size or not all(_is_batch(target, count) for target in sample.targets):
        return False
    rows = torch.arange(size)
    whole = run(gm, nodes, fixed | sample.values, instead)
    try:
        fewer = run(gm, nodes, fixed | sample.cut(rows).values, instead)
    except (RuntimeError, ValueError, IndexError):
        return False
    return all(torch.allclose(fewer[node], whole[node][rows], rtol=1e-3, atol=1e-3) for node in sample.outputs)
