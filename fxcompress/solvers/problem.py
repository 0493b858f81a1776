"""The allocation problem as plain numbers, and its answer.

One decision is a set of options of which exactly one is taken. Each option is expected to raise the loss by some
amount, and costs a whole number for each budget. With x[d,o] = 1 where decision d takes option o:

    min   sum_d sum_o loss[d,o] x[d,o]  +  sum_(i,j) sum_a sum_b pair[i,j][a,b] x[i,a] x[j,b]
    s.t.  sum_o x[d,o] = 1                              for each decision d
          sum_d sum_o cost_k[d,o] x[d,o] <= budget_k    for each budget k
          x in {0,1}

Without pair terms this is the multiple-choice knapsack problem (Kellerer, Pferschy and Pisinger 2004, chapter 11)
with a row for each budget. Costs and budgets are integers, so that an exactly tight budget is feasible.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

LOSS_LIMIT = 1e100  # far beyond any loss, and so far from the end of float64 that sums and differences stay finite
COST_LIMIT = 2**60  # solvers add costs up in 64 bits, and count them from the least or the largest of a decision
NOT_A_LOSS = "not a finite number up to 1e100"
NOT_AN_INT = "not an int; count in the smallest unit"


@dataclass(frozen=True)
class Decision:
    """Name one decision, its options, the expected rise of the loss and the costs of each.

    `loss` and every entry of `costs` follow the order of `options`; losses may be negative, and so may costs.
    Raises ValueError when they do not fit together, a loss is not a finite number up to 1e100, or a cost not an int.
    """

    name: str
    options: tuple[str, ...]
    loss: tuple[float, ...]
    costs: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        if not self.options:
            raise ValueError(f"decision {self.name!r} has no options")
        if len(set(self.options)) < len(self.options):
            twice = next(label for label in self.options if self.options.count(label) > 1)
            raise ValueError(f"decision {self.name!r} offers {twice!r} more than once")
        if len(self.loss) != len(self.options):
            raise ValueError(f"decision {self.name!r} has {len(self.options)} options but {len(self.loss)} losses")
        for label, loss in zip(self.options, self.loss, strict=True):
            if not abs(loss) <= LOSS_LIMIT:
                raise ValueError(f"decision {self.name!r}: the loss of {label!r} is {loss}, {NOT_A_LOSS}")
        for budget, costs in self.costs.items():
            if len(costs) != len(self.options):
                raise ValueError(
                    f"decision {self.name!r} has {len(self.options)} options but {len(costs)} costs for {budget!r}"
                )
            for label, cost in zip(self.options, costs, strict=True):
                if not isinstance(cost, int):
                    raise ValueError(f"decision {self.name!r}: the {budget} of {label!r} is {cost!r}, {NOT_AN_INT}")


@dataclass(frozen=True)
class Interaction:
    """State what a pair of decisions adds to the loss.

    `loss` has a row for each option of `first` and a column for each of `second`.
    Raises ValueError when both are the same decision, or when a loss is not a finite number up to 1e100.
    """

    first: str
    second: str
    loss: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if self.first == self.second:
            raise ValueError(f"decision {self.first!r} interacts with itself; add that loss to its own")
        for loss in (loss for row in self.loss for loss in row):
            if not abs(loss) <= LOSS_LIMIT:
                raise ValueError(f"{self} has the loss {loss}, {NOT_A_LOSS}")

    def __str__(self) -> str:
        return f"the interaction of {self.first!r} and {self.second!r}"


@dataclass(frozen=True)
class Problem:
    """State what is to be decided, and the limits.

    `budgets` are limits in the smallest unit, without what is spent anyway: they may lie below zero. Costs without a
    budget are ignored. Interactions of the same pair add up.
    Raises ValueError when names or shapes disagree, or when the costs for one budget add up to more than 2^60.
    """

    decisions: tuple[Decision, ...]
    budgets: Mapping[str, int]
    interactions: tuple[Interaction, ...] = ()

    def __post_init__(self) -> None:
        sizes: dict[str, int] = {}
        for decision in self.decisions:
            if decision.name in sizes:
                raise ValueError(f"two decisions are named {decision.name!r}")
            sizes[decision.name] = len(decision.options)
        for budget, limit in self.budgets.items():
            self._check_budget(budget, limit)
        for interaction in self.interactions:
            for name in (interaction.first, interaction.second):
                if name not in sizes:
                    raise ValueError(f"{interaction}: there is no decision {name!r}")
            rows, columns = sizes[interaction.first], sizes[interaction.second]
            if [len(row) for row in interaction.loss] != [columns] * rows:
                raise ValueError(f"{interaction} needs {rows} rows of {columns} losses, one for each pair of options")

    def _check_budget(self, budget: str, limit: int) -> None:
        if not isinstance(limit, int):
            raise ValueError(f"the budget {budget!r} is {limit!r}, {NOT_AN_INT}")
        for decision in self.decisions:
            if budget not in decision.costs:
                raise ValueError(f"decision {decision.name!r} has no costs for the budget {budget!r}")
        rows = [decision.costs[budget] for decision in self.decisions]
        if sum(len(row) * max(map(abs, row)) for row in rows) > COST_LIMIT:
            raise ValueError(f"the costs for the budget {budget!r} add up to more than 2^60; count in a larger unit")

    def loss_of(self, chosen: Mapping[str, int]) -> float:
        """Return the expected rise of the loss when each decision takes the option with the index in `chosen`."""
        alone = [decision.loss[chosen[decision.name]] for decision in self.decisions]
        pairs = [pair.loss[chosen[pair.first]][chosen[pair.second]] for pair in self.interactions]
        return math.fsum(alone + pairs)

    def costs_of(self, chosen: Mapping[str, int]) -> dict[str, int]:
        """Return what is spent of each budget when each decision takes the option with the index in `chosen`."""
        return {
            budget: sum(decision.costs[budget][chosen[decision.name]] for decision in self.decisions)
            for budget in self.budgets
        }

    def fits(self, chosen: Mapping[str, int]) -> bool:
        """Tell whether the options with the indices in `chosen` meet every budget."""
        return all(spent <= self.budgets[budget] for budget, spent in self.costs_of(chosen).items())


@dataclass(frozen=True)
class Allocation:
    """Hold the option taken by each decision (its index), and how good that is.

    No choice that meets the budgets has a loss below `bound`; "optimal" says that this is the `objective` itself, up
    to the solver's rounding. `costs` is what is spent of each budget.
    """

    chosen: Mapping[str, int]
    objective: float
    bound: float
    costs: Mapping[str, int]
    status: Literal["optimal", "feasible"]

    @property
    def gap(self) -> float:
        """The part of the objective that a better choice could still save; 0 when the choice is proven optimal."""
        if self.status == "optimal":
            return 0.0
        return (self.objective - self.bound) / max(abs(self.objective), sys.float_info.min)
