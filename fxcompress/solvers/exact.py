"""The exact solver: drop options, choose quickly, let CP-SAT improve on that and prove it."""

import math
import time
from dataclasses import replace

from fxcompress.errors import CompressError
from fxcompress.solvers.cp_sat import minimize
from fxcompress.solvers.explain import infeasible
from fxcompress.solvers.lagrangian import relax
from fxcompress.solvers.problem import Allocation, Decision, Problem
from fxcompress.solvers.steps import Steps

FINE = 2.0**-20  # of the loss found: coarser steps are counted again


def exact(problem: Problem, *, time_limit: float = 60.0, seed: int = 0) -> Allocation:
    """Choose the options with the least loss that meet the budgets, and prove it or give a bound.

    CP-SAT counts the loss in whole steps, about 2^50 of them from the least to the largest loss that is in question;
    "optimal" means that no choice is better by more than one step for each decision and interaction. An answer that
    takes less than `time_limit` (seconds) is the same on every run; at the limit it is the best choice found, with
    its gap.

    Raises InfeasibleError when no choice meets the budgets, CompressError when the time ended before one was found.
    """
    if not time_limit > 0:
        raise ValueError(f"time_limit is {time_limit}, not a number of seconds above 0")
    deadline = time.monotonic() + time_limit
    core = _without_dominated(problem)
    losses = Steps(core)
    best, bound = relax(core)
    while True:
        known = math.inf if best is None else losses.above_floor(best)
        weights, step = losses.count(known)
        answer = minimize(core, weights, hint=best, time_limit=deadline - time.monotonic(), seed=seed)
        if answer.status == "infeasible":
            raise infeasible(problem)
        found = [chosen for chosen in (best, answer.chosen) if chosen is not None]
        if not found:
            raise CompressError(
                f"found no choice that meets the budgets in {time_limit:g} s, nor a proof that there is none; "
                "raise time_limit"
            )
        best = min(found, key=losses.above_floor)
        bound = max(bound, losses.floor + answer.bound * step)
        rise = losses.above_floor(best)
        # where the only choice known was far too dear, the steps were coarse: count again from the better one
        if answer.status != "optimal" or rise >= known / 2 or len(weights) * step <= rise * FINE:
            break

    taken = {decision.name: decision.options[best[decision.name]] for decision in core.decisions}
    chosen = {decision.name: decision.options.index(taken[decision.name]) for decision in problem.decisions}
    objective = problem.loss_of(chosen)
    proven = answer.status == "optimal" or bound >= objective
    return Allocation(
        chosen=chosen,
        objective=objective,
        bound=objective if proven else bound,
        costs=problem.costs_of(chosen),
        status="optimal" if proven else "feasible",
    )


def _without_dominated(problem: Problem) -> Problem:
    """Drop each option that another one equals or beats in loss and in every cost; of equal ones the first stays.

    Decisions with interactions keep all: there an option's worth depends on the others.
    """
    coupled = {name for pair in problem.interactions for name in (pair.first, pair.second)}
    return replace(
        problem,
        decisions=tuple(
            decision if decision.name in coupled else _undominated(decision, list(problem.budgets))
            for decision in problem.decisions
        ),
    )


def _undominated(decision: Decision, budgets: list[str]) -> Decision:
    numbers = list(zip(decision.loss, *(decision.costs[budget] for budget in budgets), strict=True))
    kept: list[int] = []
    # in this order an option can only be dominated by one before it
    for index in sorted(range(len(numbers)), key=numbers.__getitem__):
        if not any(all(a <= b for a, b in zip(numbers[other], numbers[index], strict=True)) for other in kept):
            kept.append(index)
    kept.sort()
    return Decision(
        name=decision.name,
        options=tuple(decision.options[index] for index in kept),
        loss=tuple(decision.loss[index] for index in kept),
        costs={budget: tuple(decision.costs[budget][index] for index in kept) for budget in budgets},
    )
