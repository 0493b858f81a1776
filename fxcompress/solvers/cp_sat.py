"""The allocation problem in whole numbers as a CP-SAT model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Literal

from fxcompress.solvers.problem import Problem

if TYPE_CHECKING:
    from ortools.sat.python.cp_model import CpModel, IntVar


@dataclass(frozen=True)
class Answer:
    """Hold the choice that CP-SAT found, if any, and a weight that no choice goes below."""

    status: Literal["optimal", "feasible", "infeasible", "unknown"]
    chosen: dict[str, int] | None
    bound: int


def minimize(
    problem: Problem,
    weights: Sequence[Sequence[int]],
    *,
    hint: Mapping[str, int] | None = None,
    time_limit: float,
    seed: int = 0,
) -> Answer:
    """Choose an option for each decision so that the budgets of `problem` hold and the sum of the weights is least.

    `weights` stand in for the losses: a row for each decision, then one for each interaction (its table, row by row).
    They are not negative, and add up to less than 2^62. `hint` is a choice to start from, `time_limit` is in seconds.
    """
    from ortools.sat.python import cp_model  # here, because it takes most of a second and imports pandas

    model = cp_model.CpModel()
    takes = {decision.name: _one_of(model, len(decision.options)) for decision in problem.decisions}
    literals = list(chain.from_iterable(takes.values()))
    for budget, limit in problem.budgets.items():
        costs, limit = _counted_from_least([decision.costs[budget] for decision in problem.decisions], limit)
        model.add(cp_model.LinearExpr.weighted_sum(literals, costs) <= limit)
    for pair in problem.interactions:
        literals += _both(model, takes[pair.first], takes[pair.second])
    model.minimize(cp_model.LinearExpr.weighted_sum(literals, list(chain.from_iterable(weights))))
    for name, index in (hint or {}).items():
        for option, literal in enumerate(takes[name]):
            model.add_hint(literal, option == index)

    solver = cp_model.CpSolver()
    # one worker takes the same steps on every run
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = seed
    solver.parameters.max_time_in_seconds = max(time_limit, 0.0)
    # presolve takes a literal out of each exactly-one: the linear relaxation loses these rows, and so its bound
    solver.parameters.cp_model_presolve = False
    status = solver.solve(model)
    bound = max(0, round(solver.best_objective_bound))
    if status == cp_model.INFEASIBLE:
        return Answer("infeasible", None, bound)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Answer("unknown", None, bound)
    chosen = {
        name: next(option for option, literal in enumerate(options) if solver.boolean_value(literal))
        for name, options in takes.items()
    }
    return Answer("optimal" if status == cp_model.OPTIMAL else "feasible", chosen, bound)


def _counted_from_least(rows: Sequence[Sequence[int]], limit: int) -> tuple[list[int], int]:
    """Return a budget's costs above the least of each decision, and its limit, both in the largest common unit."""
    limit -= sum(map(min, rows))
    costs = [cost - min(row) for row in rows for cost in row]
    unit = math.gcd(*costs) or 1
    # what is spent is a whole number of units; the limit is kept within 64 bits
    return [cost // unit for cost in costs], max(-1, min(limit, sum(costs)) // unit)


def _one_of(model: "CpModel", count: int) -> list["IntVar"]:
    literals = [model.new_bool_var("") for _ in range(count)]
    model.add_exactly_one(literals)
    return literals


def _both(model: "CpModel", first: list["IntVar"], second: list["IntVar"]) -> list["IntVar"]:
    """Return y[a,b] = first[a] and second[b], row by row, tied by the sums over rows and columns.

    This is the reformulation-linearization of the product (Adams and Sherali 1986): its relaxation is tighter than
    that of one implication for each product.
    """
    table = [[model.new_bool_var("") for _ in second] for _ in first]
    for row, literal in zip(table, first, strict=True):
        model.add(sum(row) == literal)
    for column, literal in zip(zip(*table, strict=True), second, strict=True):
        model.add(sum(column) == literal)
    return list(chain.from_iterable(table))
