"""Sensitivity by the Hessian trace: the expected rise of the loss for each option of each decision (HAWQ-V2)."""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fxcompress.errors import NotReadyError
from fxcompress.graph.edit import tensor_of_choice
from fxcompress.graph.inputs import Batch, batches
from fxcompress.graph.ties import memory
from fxcompress.measure.decisions import Decision, Run, perturbations
from fxcompress.measure.float_mode import float_mode
from fxcompress.measure.progress import progress_steps

Loss = Callable[..., Tensor]
_MOST_BATCHES = 8  # probes beyond this many batches go to the same batches: a probe is cheaper than a new graph


@dataclass(frozen=True)
class Estimate:
    """The expected rise of the loss for each option of a decision, in the loss's own unit, with standard errors."""

    rise: tuple[float, ...]
    standard_error: tuple[float, ...]


class _Measured(NamedTuple):
    """What is known of one chain: v^T H v / n by probe, and ||change||^2 by way to take it and by batch."""

    curvature: list[float]
    change: dict[Run, list[float]]


def hessian_trace(
    gm: fx.GraphModule,
    decisions: Sequence[Decision],
    data: Iterable[Any] | None,
    loss: Loss | None,
    *,
    positional: int | None = None,
    probes: int = 32,
    seed: int = 0,
) -> list[Estimate]:
    """Estimate the rise of the loss that each option causes, to second order around the float model.

    The rise is half of HAWQ-V2's Omega = Tr(H)/n * ||Q(W) - W||^2 (Dong et al. 2020, equation 8; one half from the
    Taylor series), for a weight and likewise for an activation. Tr(H) comes from Hutchinson's estimator E[v^T H v]
    with Rademacher v; each probe draws v for all tensors at once. `probes` are spread over the first batches of
    `data`. A trace below its standard error, which says no more than noise, is taken to be that standard error.
    Raises NotReadyError where data or loss is missing, or the loss is not a finite scalar with finite derivatives.
    """
    refuse_missing(data, loss)
    assert data is not None
    assert loss is not None
    if not decisions:
        return []
    some = list(itertools.islice(batches(gm, data, positional), min(probes, _MOST_BATCHES)))
    if not some:
        raise NotReadyError("search.sensitivity hessian_trace needs data, but `data` yielded no batch")
    measured = {chain: _Measured([], {}) for decision in decisions for chain in decision.chains}
    generator = torch.Generator().manual_seed(seed)
    with float_mode(gm), _twice_differentiable(), progress_steps(probes, "measuring sensitivities") as step:
        for index, batch in enumerate(some):
            count = len(range(index, probes, len(some)))
            _measure(gm, measured, partial(_loss_of, gm, batch, loss, index), count, generator, step)
            _refuse_nonfinite(measured, index)
    return [_estimate(decision, measured) for decision in decisions]


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        yield


def _measure(
    gm: fx.GraphModule,
    measured: Mapping[Run, _Measured],
    forward: Callable[[], Tensor],
    probes: int,
    generator: torch.Generator,
    step: Callable[[], None],
) -> None:
    """Add what some probes of one loss, which `forward` computes, tell of each chain."""
    with _entering(gm, list(measured)) as entered:
        value = forward()
    tensors = [tensor for chain in measured for tensor in entered[chain]]
    for chain, found in measured.items():
        _add_changes(gm, chain, entered[chain], found.change)
    for products in _probe(value, tensors, probes, generator):
        rest = iter(products)
        for chain, found in measured.items():
            count = sum(tensor.numel() for tensor in entered[chain])
            found.curvature.append(sum(next(rest) for _ in entered[chain]) / count)
        step()


def _refuse_nonfinite(measured: Mapping[Run, _Measured], batch: int) -> None:
    for chain, found in measured.items():
        if not all(map(math.isfinite, found.curvature)):
            tensor = tensor_of_choice(chain[0]) or chain[0]
            raise NotReadyError(f"the loss of batch {batch} has no finite second derivative in {tensor!r}")


def refuse_missing(data: Iterable[Any] | None, loss: Loss | None) -> None:
    """Raise NotReadyError where data or loss is missing."""
    if data is None or loss is None:
        missing = " and ".join(name for name, value in (("data", data), ("loss", loss)) if value is None)
        raise NotReadyError(
            f"search.sensitivity hessian_trace needs {missing}: pass data=loader with (input, label) batches and "
            "loss=F.cross_entropy or your own loss(output, label)"
        )


def _loss_of(gm: fx.GraphModule, batch: Batch, loss: Loss, index: int) -> Tensor:
    output = gm(*batch.inputs.args, **batch.inputs.kwargs)
    try:
        value = loss(output) if batch.target is None else loss(output, batch.target)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        call = "loss(output)" if batch.target is None else "loss(output, label)"
        raise NotReadyError(
            f"{call} fails on batch {index}: {error}; a batch of data is (input, label) where the loss takes a label"
        ) from error
    if not isinstance(value, Tensor) or value.dim() != 0 or not value.isfinite():
        shown = value.detach() if isinstance(value, Tensor) else value
        raise NotReadyError(f"the loss of batch {index} must be a finite scalar, not {shown}")
    if not value.requires_grad:
        raise NotReadyError(
            f"the loss of batch {index} cannot be differentiated: compute it from the output with torch's functions"
        )
    return value


@contextmanager
def _entering(gm: fx.GraphModule, chains: Sequence[Run]) -> Iterator[dict[Run, list[Tensor]]]:
    """Make what enters each chain tensors of their own, to differentiate by; they are in the mapping after a forward.

    A chain that tensors share, or in a region that runs several times, has several; a tied weight is one.
    """
    entered: dict[Run, list[Tensor]] = {chain: [] for chain in chains}

    def follow(chain: Run) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            known = next((own for own in entered[chain] if memory(own) == memory(output)), None)
            if known is None:
                # a view: the same tensor may go elsewhere too, past the chain
                known = output.view_as(output) if output.requires_grad else output.detach().requires_grad_()
                entered[chain].append(known)
            return known

        return hook

    handles = [gm.get_submodule(chain[0]).register_forward_hook(follow(chain)) for chain in chains]
    try:
        yield entered
    finally:
        for handle in handles:
            handle.remove()


def _probe(value: Tensor, tensors: Sequence[Tensor], count: int, generator: torch.Generator) -> Iterator[list[float]]:
    """Yield for each probe v^T H v of each tensor."""
    gradients = torch.autograd.grad(value, tensors, create_graph=True, allow_unused=True, materialize_grads=True)
    for probe in range(count):
        directions = [_rademacher(tensor, generator) for tensor in tensors]
        curved = [pair for pair in zip(gradients, directions, strict=True) if pair[0].requires_grad]
        if not curved:  # a loss that is linear in everything
            yield [0.0] * len(tensors)
            continue
        products = torch.autograd.grad(
            *([gradient for gradient, _ in curved], tensors, [direction for _, direction in curved]),
            retain_graph=probe < count - 1,
            allow_unused=True,
            materialize_grads=True,
        )
        sums = [(v * hv).sum(dtype=torch.float64) for v, hv in zip(directions, products, strict=True)]
        yield torch.stack(sums).tolist()


def _rademacher(tensor: Tensor, generator: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, tensor.shape, generator=generator, dtype=torch.int8)
    return signs.to(tensor.device, tensor.dtype).mul_(2).sub_(1)


@torch.no_grad()
def _add_changes(gm: fx.GraphModule, chain: Run, tensors: Sequence[Tensor], changes: dict[Run, list[float]]) -> None:
    if not tensors:
        name = tensor_of_choice(chain[0]) or chain[0]
        raise NotReadyError(
            f"the data does not reach {name!r}, whose bits are open; state them, or give data that does"
        )
    total: dict[Run, float] = defaultdict(float)
    for tensor in tensors:
        for labels, change in perturbations(gm, chain, tensor.detach()):
            total[labels] += change.square().sum(dtype=torch.float64).item()
    for labels, square in total.items():
        changes.setdefault(labels, []).append(square)


def _estimate(decision: Decision, measured: Mapping[Run, _Measured]) -> Estimate:
    noise = {chain: _standard_error(measured[chain].curvature) for chain in decision.chains}
    mean = {chain: max(fmean(measured[chain].curvature), noise[chain]) for chain in decision.chains}
    rises, errors = [], []
    for option in decision.options:
        rise = variance = 0.0
        for chain in decision.chains:
            change = fmean(measured[chain].change[tuple(option.picks[name] for name in chain)])
            rise += 0.5 * mean[chain] * change
            variance += (0.5 * noise[chain] * change) ** 2
        rises.append(rise)
        errors.append(variance**0.5)
    return Estimate(tuple(rises), tuple(errors))


def _standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean; of one value alone, its size."""
    if len(values) < 2:
        return abs(fmean(values))
    return torch.tensor(values, dtype=torch.float64).std().item() / len(values) ** 0.5
