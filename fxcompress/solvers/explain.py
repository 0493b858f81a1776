"""Say why: which budgets conflict and what would fit, and for each decision why it got its option."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from fxcompress.errors import InfeasibleError
from fxcompress.solvers.cp_sat import minimize
from fxcompress.solvers.problem import Allocation, Decision, Problem

Show = Callable[[str, int], str]  # (budget, amount in its smallest unit) -> the amount as text


def _plain(budget: str, amount: int) -> str:
    return f"{amount:,}"


def least_feasible(problem: Problem, *, time_limit: float = 10.0) -> dict[str, int]:
    """Return for each budget the least limit that would fit with the other budgets kept.

    Where the others cannot be met either, it is the least with all of them dropped. A value that takes longer than
    `time_limit` (seconds) to prove is the least found.
    """
    return {budget: _least(problem, budget, time_limit) for budget in problem.budgets}


def infeasible(problem: Problem, *, show: Show = _plain) -> InfeasibleError:
    """Return the error to raise for a problem without a feasible choice: which budgets conflict, and what would fit.

    These are all budgets that cannot be met even alone, or else a set that could be met without any one of them.
    `show(budget, amount)` writes amounts, for example in the user's units.
    """
    conflict = [budget for budget, limit in problem.budgets.items() if _cheapest(problem, budget) > limit]
    together = not conflict
    if together:
        conflict = _irreducible_conflict(problem)
    asked = {budget: problem.budgets[budget] for budget in conflict}
    least = least_feasible(_limited(problem, conflict) if together else problem)
    least = {budget: least[budget] for budget in conflict}
    if together:
        clauses = (
            f"{budget} would fit at {show(budget, least[budget])} ({show(budget, asked[budget])} asked) with "
            f"{_listed(other for other in conflict if other != budget)} kept"
            for budget in conflict
        )
        text = f"{_listed(conflict)} together: " + "; ".join(clauses)
    else:
        text = "; ".join(
            f"{budget}: at most {show(budget, asked[budget])} asked, at least {show(budget, least[budget])} needed"
            for budget in conflict
        )
    return InfeasibleError(
        f"no choice of options meets the budgets: {text}", asked=asked, least=least, together=together
    )


def why(problem: Problem, allocation: Allocation, show: Show = _plain) -> dict[str, str]:
    """Return for each decision one sentence on why it got its option rather than another, the other choices kept.

    `show(budget, amount)` writes amounts, for example in the user's units.
    """
    losses = {decision.name: list(decision.loss) for decision in problem.decisions}
    chosen = allocation.chosen
    for pair in problem.interactions:
        for index, row in enumerate(pair.loss):
            losses[pair.first][index] += row[chosen[pair.second]]
        for index, loss in enumerate(pair.loss[chosen[pair.first]]):
            losses[pair.second][index] += loss
    left = {budget: limit - allocation.costs[budget] for budget, limit in problem.budgets.items()}
    proven = allocation.status == "optimal"
    return {
        decision.name: f"{decision.options[chosen[decision.name]]}: "
        + _reason(decision, losses[decision.name], chosen[decision.name], left, proven, show)
        for decision in problem.decisions
    }


def _reason(
    decision: Decision, loss: Sequence[float], taken: int, left: Mapping[str, int], proven: bool, show: Show
) -> str:
    if len(decision.options) == 1:
        return "the only option"
    extra = [
        {budget: decision.costs[budget][index] - decision.costs[budget][taken] for budget in left}
        for index in range(len(decision.options))
    ]
    fits = [all(amount <= left[budget] for budget, amount in more.items()) for more in extra]
    better = [index for index in range(len(loss)) if loss[index] < loss[taken]]
    if not proven and any(fits[index] for index in better):
        index = min((index for index in better if fits[index]), key=loss.__getitem__)
        label, gain = decision.options[index], loss[taken] - loss[index]
        return f"the best found when the time ended; {label} would lower the loss by {gain:.2g} and fits"
    # where the choice is proven, what fits is better by no more than the solver's rounding
    if better := [index for index in better if not fits[index]]:
        index = max(better, key=loss.__getitem__)
        label, gain = decision.options[index], loss[taken] - loss[index]
        needs = _listed(
            f"{show(budget, amount)} more {budget} ({show(budget, left[budget])} left)"
            for budget, amount in extra[index].items()
            if amount > left[budget]
        )
        return f"the least loss that fits; {label} would lower the loss by {gain:.2g} but needs {needs}"
    worse = [index for index in range(len(loss)) if loss[index] > loss[taken]]
    if cheaper := [index for index in worse if any(amount < 0 for amount in extra[index].values())]:
        index = min(cheaper, key=loss.__getitem__)
        label, rise = decision.options[index], loss[index] - loss[taken]
        return f"no other option has less loss; the cheaper {label} would raise the loss by {rise:.2g}"
    return "no other option has less loss"


def _least(problem: Problem, budget: str, time_limit: float) -> int:
    """Return the least spent of a budget with the others kept, or with them dropped where they conflict."""
    others = _limited(problem, [other for other in problem.budgets if other != budget])
    rows = [decision.costs[budget] for decision in problem.decisions]
    answer = minimize(others, [[cost - min(row) for cost in row] for row in rows], time_limit=time_limit)
    if answer.chosen is None:
        return _cheapest(problem, budget)
    return problem.costs_of(answer.chosen)[budget]


def _cheapest(problem: Problem, budget: str) -> int:
    return sum(min(decision.costs[budget]) for decision in problem.decisions)


def _irreducible_conflict(problem: Problem) -> list[str]:
    """Return what is left when each budget is dropped without which the others still conflict.

    This is the deletion filter of Chinneck and Dravnieks 1991.
    """
    conflict = list(problem.budgets)
    nothing = [[0] * len(decision.options) for decision in problem.decisions]
    for budget in problem.budgets:
        rest = [other for other in conflict if other != budget]
        if minimize(_limited(problem, rest), nothing, time_limit=10.0).status == "infeasible":
            conflict = rest
    return conflict


def _limited(problem: Problem, budgets: Iterable[str]) -> Problem:
    """Return the problem of meeting only these budgets, at any loss."""
    return replace(problem, budgets={budget: problem.budgets[budget] for budget in budgets}, interactions=())


def _listed(words: Iterable[str]) -> str:
    *front, last = words
    return f"{', '.join(front)} and {last}" if front else last
