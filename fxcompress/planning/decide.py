"""Deciding: measure what each option would lose, price it, and let a solver choose."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import fx

from fxcompress.errors import InfeasibleError, NotReadyError, PolicyError
from fxcompress.graph.shapes import Shapes
from fxcompress.measure.decisions import Decision, decisions
from fxcompress.measure.hessian import Estimate, Loss, hessian_trace, refuse_missing
from fxcompress.nn import Choice
from fxcompress.planning.prices import pose
from fxcompress.policies import Search, show
from fxcompress.solvers import Allocation, Problem, exact, why
from fxcompress.solvers.explain import infeasible

SENSITIVITIES = {"hessian_trace": hessian_trace}
SOLVERS = {"exact": exact}


@dataclass(frozen=True)
class Decided:
    """What was asked of the solver and what it answered; no decision changes the `fixed` part of each budget."""

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


def refuse_missing_inputs(search: Search, data: Iterable[Any] | None, loss: Loss | None) -> None:
    """Raise NotReadyError, before anything is measured, where the search lacks what its sensitivity needs."""
    if search.sensitivity.name == "hessian_trace":
        refuse_missing(data, loss)


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

    Raises InfeasibleError in the user's units with the least values that would fit, NotReadyError for a Choice that
    the sensitivity cannot price, and PolicyError where the user's own sensitivity or solver answers wrongly.
    """
    _refuse_whole_operators(gm)
    open_decisions = decisions(gm)
    sensitivity = search.sensitivity.function(SENSITIVITIES)
    ours = {"positional": positional} if search.sensitivity.name in SENSITIVITIES else {}
    estimates = sensitivity(gm, open_decisions, data, loss, **ours, **search.sensitivity.args)
    _check(search.sensitivity.name, open_decisions, estimates)
    problem, fixed = pose(gm, original, open_decisions, estimates, search, shapes)
    try:
        allocation = search.solver.function(SOLVERS)(problem, **search.solver.args)
    except InfeasibleError:
        raise infeasible(problem, show=partial(_show_limit, search, problem, fixed)) from None
    if not problem.fits(allocation.chosen):
        raise PolicyError(f"solver {search.solver.name!r} returned a choice that does not meet the budgets")
    reasons = why(problem, allocation, show=show)
    return Decided(tuple(open_decisions), tuple(estimates), problem, fixed, allocation, reasons)


def _check(sensitivity: str, open_decisions: Sequence[Decision], estimates: Sequence[Estimate]) -> None:
    if len(estimates) != len(open_decisions):
        raise PolicyError(
            f"sensitivity {sensitivity!r} returned {len(estimates)} estimates for {len(open_decisions)} decisions"
        )
    for decision, estimate in zip(open_decisions, estimates, strict=True):
        options, rises = len(decision.options), len(estimate.rise)
        if rises != options or not all(map(math.isfinite, estimate.rise)):
            raise PolicyError(
                f"sensitivity {sensitivity!r} returned {estimate.rise} for {decision.name!r}; it has {options} "
                "options, and each needs a finite number"
            )


def _show_limit(search: Search, problem: Problem, fixed: Mapping[str, int], budget: str, amount: int) -> str:
    """Write a limit without its fixed part as the user would: what was asked in the user's words, others in full.

    What is not asked is rounded up to four digits, so that it fits when it is asked next.
    """
    whole = amount + fixed[budget]
    if amount != problem.budgets[budget]:
        digit = 10 ** max(len(str(whole)) - 4, 0)
        return show(budget, -(-whole // digit) * digit)
    asked, limit = search.budgets[budget].max, show(budget, whole)
    return f"{asked} ({limit})" if asked.unit == "%" else limit


def _refuse_whole_operators(gm: fx.GraphModule) -> None:
    for name, module in gm.named_modules():
        if isinstance(module, Choice) and module.active is not None:
            raise NotReadyError(
                f"{name!r} offers whole operators ({' | '.join(module.labels)}), which this sensitivity cannot "
                "price; decide it with a resolve step before the search, or write one kernel_size"
            )
