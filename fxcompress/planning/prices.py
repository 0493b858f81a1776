"""Prices: what a graph costs, and the allocation problem that its open decisions pose."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import fx

from fxcompress.errors import PolicyError
from fxcompress.graph import Layer
from fxcompress.graph.shapes import Shapes
from fxcompress.measure.costs import COSTS, CostModel, rest_size, scales_size
from fxcompress.measure.decisions import Decision
from fxcompress.measure.hessian import Estimate
from fxcompress.measure.latency import read_table
from fxcompress.measure.options import LayerOption, Picks, Survey, survey
from fxcompress.policies import Search
from fxcompress.policies.reference import load_attribute
from fxcompress.solvers import Decision as PricedDecision
from fxcompress.solvers import Problem


class Price:
    """A budget's cost model with its arguments, for one graph; costs are in the budget's smallest unit."""

    def __init__(self, name: str, gm: fx.GraphModule, args: Mapping[str, Any] = {}) -> None:
        self._name, self._gm = name, gm
        self._model: CostModel = COSTS[name] if name in COSTS else load_attribute(name)
        self._args = {"table": read_table(args["table"])} if name == "latency" else dict(args)

    def layer(self, layer: Layer, option: LayerOption) -> int:
        """Return what one layer costs. Raises PolicyError where the model's answer is not an int."""
        cost = self._model(self._gm, layer, option, **self._args)
        if not isinstance(cost, int):
            raise PolicyError(f"cost model {self._name!r} returned {cost!r}; a cost is an int in the smallest unit")
        return cost

    def taken(self, some: Iterable[tuple[Layer, LayerOption]], picks: Picks) -> int:
        """Return what layers cost as they run when Choices are taken as `picks` says, with what the Choices add."""
        beside = scales_size(self._gm, picks) if self._name == "size" else 0
        return beside + sum(self.layer(layer, option) for layer, option in some)

    def total(self, layers: Survey, picks: Picks) -> int:
        """Return what the whole graph costs; for size, with everything that belongs to no layer."""
        beside = rest_size(self._gm) if self._name == "size" else 0
        return beside + self.taken(((one.layer, one.option(picks)) for one in layers.values()), picks)

    def fixed(self, layers: Survey, decided: Iterable[str]) -> int:
        """Return the part of the whole graph's cost that decisions on some layers do not change."""
        names = set(decided)
        return self.total({name: one for name, one in layers.items() if name not in names}, {})


def float_prices(gm: fx.GraphModule, search: Search | None, shapes: Shapes | None) -> dict[str, int]:
    """Return what the float model costs in each budget, in size, and where shapes are known in bit operations."""
    wanted: dict[str, Mapping[str, Any]] = {"size": {}}
    if shapes is not None:
        wanted["bops"] = {}
    for name, budget in search.budgets.items() if search else ():
        if name != "latency" or budget.max.unit == "%":  # an absolute limit needs no row for float operators
            wanted[name] = budget.args
    layers = survey(gm, shapes)
    return {name: Price(name, gm, args).total(layers, {}) for name, args in wanted.items()}


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
    layers = survey(gm, shapes)
    prices = {name: Price(name, gm, budget.args) for name, budget in search.budgets.items()}
    decided = [name for decision in decisions for name in decision.layers]
    fixed = {name: price.fixed(layers, decided) for name, price in prices.items()}
    limits = {name: budget.max.limit(name, original.get(name, 0)) for name, budget in search.budgets.items()}
    priced = tuple(
        _priced(decision, estimate, layers, prices) for decision, estimate in zip(decisions, estimates, strict=True)
    )
    return Problem(priced, {name: limit - fixed[name] for name, limit in limits.items()}), fixed


def _priced(decision: Decision, estimate: Estimate, layers: Survey, prices: Mapping[str, Price]) -> PricedDecision:
    costs: dict[str, list[int]] = {name: [] for name in prices}
    for option in decision.options:
        run = [(layers[name].layer, layers[name].option(option.picks)) for name in decision.layers]
        for name, price in prices.items():
            costs[name].append(price.taken(run, option.picks))
    labels = tuple(option.label for option in decision.options)
    return PricedDecision(decision.name, labels, estimate.rise, {name: tuple(row) for name, row in costs.items()})
