"""Prices: what a graph costs, and the allocation problem that its open decisions pose."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import fx

from fxcompress.errors import PolicyError
from fxcompress.graph import Layer, layers
from fxcompress.graph.shapes import Shapes
from fxcompress.measure.costs import COSTS, CostModel, option_of, rest_size
from fxcompress.measure.decisions import Decision
from fxcompress.measure.hessian import Estimate
from fxcompress.policies import Search
from fxcompress.policies.reference import load_attribute
from fxcompress.solvers import Decision as PricedDecision
from fxcompress.solvers import Problem

Picks = Mapping[str, str]


def cost(
    name: str, gm: fx.GraphModule, some: Iterable[Layer], picks: Picks, shapes: Shapes | None, **args: Any
) -> int:
    """Return what some layers cost with open Choices taken as `picks` says, in the smallest unit of the budget."""
    model: CostModel = COSTS[name] if name in COSTS else load_attribute(name)
    return sum(_whole_number(name, model(gm, layer, option_of(gm, layer, picks, shapes), **args)) for layer in some)


def _whole_number(name: str, value: Any) -> int:
    if not isinstance(value, int):
        raise PolicyError(f"cost model {name!r} returned {value!r}; a cost is an int in the smallest unit")
    return value


def total_cost(name: str, gm: fx.GraphModule, picks: Picks, shapes: Shapes | None, **args: Any) -> int:
    """Return what the whole graph costs; for size, with everything that belongs to no layer."""
    return cost(name, gm, layers(gm), picks, shapes, **args) + (rest_size(gm) if name == "size" else 0)


def float_prices(gm: fx.GraphModule, search: Search | None, shapes: Shapes | None) -> dict[str, int]:
    """Return what the float model costs in each budget, in size, and where shapes are known in bit operations."""
    wanted: dict[str, dict[str, Any]] = {"size": {}} | ({"bops": {}} if shapes is not None else {})
    for name, budget in search.budgets.items() if search else ():
        if name != "latency" or budget.max.unit == "%":  # an absolute limit needs no row for float operators
            wanted[name] = budget.args
    return {name: total_cost(name, gm, {}, shapes, **args) for name, args in wanted.items()}


def pose(
    gm: fx.GraphModule,
    original: Mapping[str, int],
    decisions: Sequence[Decision],
    estimates: Sequence[Estimate],
    search: Search,
    shapes: Shapes | None,
) -> tuple[Problem, dict[str, int]]:
    """Return the problem of choosing an option for each decision within the budgets, and each budget's fixed part.

    `original` holds what the float model costs, by budget; limits in the problem are without the fixed parts.
    """
    by_name = {layer.name: layer for layer in layers(gm)}
    decided = {name for decision in decisions for name in decision.layers}
    costs: dict[str, list[tuple[int, ...]]] = {}
    fixed: dict[str, int] = {}
    for name, budget in search.budgets.items():
        rest = [layer for layer in by_name.values() if layer.name not in decided]
        fixed[name] = cost(name, gm, rest, {}, shapes, **budget.args) + (rest_size(gm) if name == "size" else 0)
        costs[name] = [
            tuple(
                cost(name, gm, [by_name[layer] for layer in decision.layers], option.picks, shapes, **budget.args)
                for option in decision.options
            )
            for decision in decisions
        ]
    priced = tuple(
        PricedDecision(
            decision.name,
            tuple(option.label for option in decision.options),
            estimate.rise,
            {name: costs[name][index] for name in costs},
        )
        for index, (decision, estimate) in enumerate(zip(decisions, estimates, strict=True))
    )
    limits = {name: budget.max.limit(name, original.get(name, 0)) for name, budget in search.budgets.items()}
    return Problem(priced, {name: limits[name] - fixed[name] for name in limits}), fixed
