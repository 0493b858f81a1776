"""One of each thing that a package can add: a pass, an observer, a sensitivity, a cost model, a solver."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress.graph import Layer, layers
from fxcompress.graph.edit import insert
from fxcompress.measure.decisions import Decision
from fxcompress.measure.hessian import Estimate
from fxcompress.passes import apply
from fxcompress.policies import Step
from fxcompress.solvers import Allocation, Problem


class ClipInputs(Step):
    """Clip what enters each linear layer to [-limit, limit]."""

    kind: str = "fxcompress_plugin:ClipInputs"
    limit: float


@apply.register
def clip_inputs(spec: ClipInputs, gm: fx.GraphModule) -> None:
    """Put a clip on the input of each linear layer."""
    for layer in layers(gm):
        for edge in layer.input_edges() if layer.kind == "linear" else ():
            insert(gm, edge, f"{edge.name}_clip", torch.nn.Hardtanh(-spec.limit, spec.limit), layer.calls)
    gm.recompile()


class MeanObserver:
    """The range `width` standard deviations around zero of the batches seen."""

    def __init__(self, width: float = 3.0) -> None:
        self._width, self._squares, self._batches = width, torch.zeros(()), 0

    def observe(self, x: Tensor) -> None:
        """Add a batch of shape (channels, values)."""
        self._squares = self._squares + x.square().mean(1)
        self._batches += 1

    def range(self) -> tuple[Tensor, Tensor]:
        """Return both ends."""
        end = self._width * (self._squares / self._batches).sqrt()
        return -end, end


def fewer_bits_lose_more(
    gm: fx.GraphModule, decisions: Sequence[Decision], data: Iterable[Any] | None, loss: Any, *, factor: float = 1.0
) -> list[Estimate]:
    """Say without any data that an option loses the more the fewer bits it has."""
    losses = []
    for decision in decisions:
        bits = [settings["weight.bits"] for option in decision.options for settings in option.settings.values()]
        losses.append(Estimate(tuple(factor * 2.0**-b for b in bits), tuple(0.0 for _ in bits)))
    return losses


def weight_bits(gm: fx.GraphModule, layer: Layer, option: Any, *, each: int = 1) -> int:
    """Charge the bits of a weight once for each layer, whatever its size."""
    return each * option.weight_bits if layer.weight is not None else 0


def cheapest(problem: Problem) -> Allocation:
    """Take the cheapest option of each decision."""
    chosen = {
        d.name: min(range(len(d.options)), key=lambda o: sum(c[o] for c in d.costs.values()))
        for d in problem.decisions
    }
    loss = problem.loss_of(chosen)
    return Allocation(chosen, loss, min(0.0, loss), problem.costs_of(chosen), "feasible")
