"""Sensitivity by the Hessian trace: the expected rise of the loss for each option of each decision (HAWQ-V2)."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxcompress.errors import NotReadyError
from fxcompress.graph.inputs import Batch, batches
from fxcompress.measure.decisions import Decision, perturbations
from fxcompress.measure.float_mode import float_mode
from fxcompress.measure.progress import progress

Loss = Callable[..., Tensor]
_MOST_BATCHES = 8  # probes beyond this many batches go to the same batches: a probe is cheaper than a new graph


@dataclass(frozen=True)
class Estimate:
    """The expected rise of the loss for each option of a decision, in the loss's own unit, with standard errors."""

    rise: tuple[float, ...]
    standard_error: tuple[float, ...]


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
    Taylor series), for a weight and likewise for an activation. Tr(H) comes from Hutchinson's estimator E[v^T H v] with
    Rademacher v; each probe draws v for all tensors at once. `probes` are spread over the first batches of `data`. A
    trace below its standard error, which says no more than noise, is taken to be that standard error.
    Raises NotReadyError where data or loss is missing, or the loss is not a finite scalar.
    """
    if data is None or loss is None:
        missing = " and ".join(name for name, value in (("data", data), ("loss", loss)) if value is None)
        raise NotReadyError(
            f"search.sensitivity hessian_trace needs {missing}: pass data=loader with (input, label) batches and "
            "loss=F.cross_entropy or your own loss(output, label)"
        )
    chains = list(dict.fromkeys(chain for decision in decisions for chain in decision.chains))
    samples: list[dict[tuple[str, ...], _Sample]] = []
    with float_mode(gm):
        some = list(itertools.islice(batches(gm, data, positional), _MOST_BATCHES))
        if not some:
            raise NotReadyError("search.sensitivity hessian_trace needs data, but `data` yielded no batch")
        generator = torch.Generator().manual_seed(seed)
        with progress_of(probes) as step:
            for index, batch in enumerate(some):
                share = range(index, probes, len(some))
                samples += _probe(gm, chains, batch, loss, len(share), generator, index, step)
    return [_estimate(decision, samples) for decision in decisions]


@dataclass(frozen=True)
class _Sample:
    """One probe of one tensor: v^T H v / n, and the squared norm of the change for each combination of labels."""

    curvature: float
    change: dict[tuple[str, ...], float]


@contextmanager
def progress_of(total: int) -> Iterator[Callable[[], Any]]:
    """Give a function that tells a progress bar of `total` probes that one more is done."""
    bar = progress(range(total + 1), "measuring sensitivities", total)
    next(bar)
    yield lambda: next(bar, None)
    bar.close()  # type: ignore[attr-defined]


@contextmanager
def _as_leaves(gm: fx.GraphModule, chains: Sequence[tuple[str, ...]]) -> Iterator[dict[tuple[str, ...], Tensor]]:
    """Cut the graph of autograd at each chain: what enters it becomes a leaf, found in the mapping after a forward."""
    leaves: dict[tuple[str, ...], Tensor] = {}

    def cut(chain: tuple[str, ...]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            if chain not in leaves:  # a tied weight is entered twice and is one leaf
                leaves[chain] = output.detach().requires_grad_()
            return leaves[chain]

        return hook

    handles = [gm.get_submodule(chain[0]).register_forward_hook(cut(chain)) for chain in chains]
    try:
        yield leaves
    finally:
        for handle in handles:
            handle.remove()


def _probe(
    gm: fx.GraphModule,
    chains: Sequence[tuple[str, ...]],
    batch: Batch,
    loss: Loss,
    probes: int,
    generator: torch.Generator,
    index: int,
    step: Callable[[], Any],
) -> list[dict[tuple[str, ...], _Sample]]:
    if probes == 0:
        return []
    with _as_leaves(gm, chains) as leaves:
        output = gm(*batch.inputs.args, **batch.inputs.kwargs)
    value = loss(output) if batch.target is None else loss(output, batch.target)
    if value.dim() != 0 or not value.isfinite():
        raise NotReadyError(f"the loss of batch {index} must be a finite scalar, not {value.detach()}")
    tensors = [leaves[chain] for chain in chains]
    gradients = torch.autograd.grad(value, tensors, create_graph=True, allow_unused=True, materialize_grads=True)
    changes = [_squared_changes(gm, chain, leaf) for chain, leaf in zip(chains, tensors, strict=True)]
    samples = []
    for probe in range(probes):
        directions = [_rademacher(tensor, generator) for tensor in tensors]
        products = torch.autograd.grad(
            gradients,
            tensors,
            grad_outputs=directions,
            retain_graph=probe < probes - 1,
            allow_unused=True,
            materialize_grads=True,
        )
        curvatures = torch.stack([(v * hv).mean() for v, hv in zip(directions, products, strict=True)]).tolist()
        samples.append({c: _Sample(k, change) for c, k, change in zip(chains, curvatures, changes, strict=True)})
        step()
    return samples


def _rademacher(tensor: Tensor, generator: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, tensor.shape, generator=generator, dtype=torch.int8)
    return signs.to(tensor.device, tensor.dtype).mul_(2).sub_(1)


@torch.no_grad()
def _squared_changes(gm: fx.GraphModule, chain: tuple[str, ...], leaf: Tensor) -> dict[tuple[str, ...], float]:
    return {labels: change.square().sum().item() for labels, change in perturbations(gm, chain, leaf.detach())}


def _estimate(decision: Decision, samples: list[dict[tuple[str, ...], _Sample]]) -> Estimate:
    curvature = {chain: torch.tensor([s[chain].curvature for s in samples]) for chain in decision.chains}
    noise = {chain: _standard_error(values) for chain, values in curvature.items()}
    mean = {chain: max(values.mean().item(), noise[chain]) for chain, values in curvature.items()}
    rises, errors = [], []
    for option in decision.options:
        rise = variance = 0.0
        for chain in decision.chains:
            labels = tuple(option.picks[name] for name in chain)
            change = sum(sample[chain].change[labels] for sample in samples) / len(samples)
            rise += 0.5 * mean[chain] * change
            variance += (0.5 * noise[chain] * change) ** 2
        rises.append(rise)
        errors.append(variance**0.5)
    return Estimate(tuple(rises), tuple(errors))


def _standard_error(values: Tensor) -> float:
    return (values.std() / len(values) ** 0.5).item() if len(values) > 1 else abs(values.mean().item())
