"""Deciding: measure what each option would lose, price it, and let a solver choose."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from fxcompress.errors import InfeasibleError, NotReadyError
from fxcompress.graph.shapes import Shapes
from fxcompress.measure.decisions import Decision, decisions
from fxcompress.measure.hessian import Estimate, Loss, hessian_trace
from fxcompress.nn import Choice
from fxcompress.planning.prices import pose
from fxcompress.policies import Search, show
from fxcompress.solvers import Allocation, Problem, exact, why
from fxcompress.solvers.explain import infeasible

SENSITIVITIES = {"hessian_trace": hessian_trace}
SOLVERS = {"exact": exact}


@dataclass(frozen=True)
class Decided:
    """What was asked of the solver and what it answered; `fixed` is the part of each budget that no decision changes."""

    decisions: tuple[Decision, ...]
    estimates: tuple[Estimate, ...]
    problem: Problem
    fixed: Mapping[str, int]
    allocation: Allocation
    why: Mapping[str, str]

    @property
    def picks(self) -> dict[str, str]:
        """The option taken by each Choice."""
        chosen = ((d, d.options[self.allocation.chosen[d.name]]) for d in self.decisions)
        return {name: label for _, option in chosen for name, label in option.picks.items()}

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """The decided fields of each layer, in the policy's words."""
        said: dict[str, dict[str, Any]] = {}
        for decision in self.decisions:
            for layer, fields in decision.options[self.allocation.chosen[decision.name]].settings.items():
                said.setdefault(layer, {}).update(fields)
        return said


def decide(
    gm: fx.GraphModule,
    search: Search,
    original: Mapping[str, int],
    shapes: Shapes | None,
    data: Iterable[Any] | None,
    loss: Loss | None,
    positional: int | None,
) -> Decided:
    """Choose an option for each open decision of the graph within the budgets of the search.

    Raises InfeasibleError in the user's units with the least values that would fit, and NotReadyError for a Choice that
    the sensitivity cannot price.
    """
    _refuse_whole_operators(gm)
    open_decisions = decisions(gm)
    sensitivity = search.sensitivity.function(SENSITIVITIES)
    ours = {"positional": positional} if search.sensitivity.name in SENSITIVITIES else {}
    estimates = sensitivity(gm, open_decisions, data, loss, **ours, **search.sensitivity.args)
    problem, fixed = pose(gm, original, open_decisions, estimates, search, shapes)

    def in_units(budget: str, amount: int) -> str:
        return show(budget, amount)

    try:
        allocation = search.solver.function(SOLVERS)(problem, **search.solver.args)
    except InfeasibleError:
        raise infeasible(problem, show=lambda budget, amount: in_units(budget, amount + fixed[budget])) from None
    reasons = why(problem, allocation, show=in_units)
    return Decided(tuple(open_decisions), tuple(estimates), problem, fixed, allocation, reasons)


def _refuse_whole_operators(gm: fx.GraphModule) -> None:
    for name, module in gm.named_modules():
        if isinstance(module, Choice) and module.active is not None:
            raise NotReadyError(
                f"{name!r} offers whole operators ({' | '.join(module.labels)}), which this sensitivity cannot price; "
                "decide it with a resolve step before the search, or write one kernel_size"
            )
