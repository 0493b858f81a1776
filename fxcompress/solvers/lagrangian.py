"""A quick choice and a bound: price the budgets, and let every decision take what is best for it at these prices."""

import math

import numpy as np
from numpy.typing import NDArray

from fxcompress.solvers.problem import COST_LIMIT, Problem

ROUNDS = 4  # over all prices; later ones change little
HALVINGS = 44  # of the range of a price's exponent
EXPONENT = 400  # prices between 2^-400 and 2^400 cover losses up to 1e100 and costs up to 2^60


def relax(problem: Problem) -> tuple[dict[str, int] | None, float]:
    """Return the best choice met while pricing the budgets (None if none fits), and a loss that no choice goes below.

    For any prices p >= 0, sum_d min_o (loss + sum_k p_k cost_k) - sum_k p_k budget_k is such a bound (Fisher 1981).
    Each price in turn is brought, by bisection, to the least at which its budget holds while the others stay. Pair
    terms count with their least entry.
    """
    market = _Market(problem)
    budgets = range(len(problem.budgets))
    prices = 2.0**EXPONENT / np.maximum(market.limits, 1)
    market.offer(prices)  # the least cost, each budget in its own measure
    prices = np.zeros(len(budgets))
    for _ in range(ROUNDS):
        before = prices.copy()
        for budget in budgets:
            _settle(market, prices, budget)
        if np.array_equal(prices, before):
            break
    bound = market.bound + math.fsum(min(map(min, pair.loss)) for pair in problem.interactions)
    if market.best is None:
        return None, bound
    chosen = market.spend_rest(market.best)
    return {decision.name: int(index) for decision, index in zip(problem.decisions, chosen, strict=True)}, bound


def _settle(market: "_Market", prices: NDArray[np.float64], budget: int) -> None:
    """Set the price of one budget, in place, to about the least at which the budget holds."""
    prices[budget] = 0.0
    if market.offer(prices)[budget] <= market.limits[budget]:
        return
    low, high = -float(EXPONENT), float(EXPONENT)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        prices[budget] = 2.0**middle
        if market.offer(prices)[budget] <= market.limits[budget]:
            high = middle
        else:
            low = middle
    prices[budget] = 2.0**high


class _Market:
    """Hold the problem as arrays (decisions x options, padded), the best choice and the highest bound so far."""

    def __init__(self, problem: Problem) -> None:
        shape = (len(problem.decisions), max((len(decision.options) for decision in problem.decisions), default=1))
        self.loss = np.full(shape, np.inf)
        self.costs = np.zeros((len(problem.budgets), *shape), dtype=np.int64)
        for row, decision in enumerate(problem.decisions):
            self.loss[row, : len(decision.options)] = decision.loss
            for index, budget in enumerate(problem.budgets):
                self.costs[index, row, : len(decision.options)] = decision.costs[budget]
        limits = [max(-COST_LIMIT - 1, min(limit, COST_LIMIT)) for limit in problem.budgets.values()]
        self.limits = np.array(limits, dtype=np.int64)
        self.rows = np.arange(shape[0])
        self.best: NDArray[np.intp] | None = None
        self.best_loss = np.inf
        self.bound = -np.inf

    def offer(self, prices: NDArray[np.float64]) -> NDArray[np.int64]:
        """Let every decision take its best option at these prices; return what that spends of each budget."""
        priced = self.loss + np.tensordot(prices, self.costs, axes=1)
        chosen = priced.argmin(axis=1)
        paid, refund = priced[self.rows, chosen].sum(), prices @ self.limits
        # the last term covers the rounding of the sums
        self.bound = max(self.bound, float(paid - refund - 1e-14 * (abs(paid) + abs(refund))))
        spent: NDArray[np.int64] = self.costs[:, self.rows, chosen].sum(axis=1)
        loss = self.loss[self.rows, chosen].sum()
        if loss < self.best_loss and (spent <= self.limits).all():
            self.best, self.best_loss = chosen, loss
        return spent

    def spend_rest(self, chosen: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return the choice after every single change that lowers the loss and still fits, the largest gain first."""
        chosen = chosen.copy()
        rest = self.limits - self.costs[:, self.rows, chosen].sum(axis=1)
        gain = self.loss[self.rows, chosen][:, None] - self.loss
        extra = self.costs - self.costs[:, self.rows, chosen][:, :, None]
        rows, options = np.nonzero((gain > 0) & (extra <= rest[:, None, None]).all(axis=0))
        for at in np.argsort(-gain[rows, options], kind="stable"):
            row, option = rows[at], options[at]
            extra_now = self.costs[:, row, option] - self.costs[:, row, chosen[row]]
            if self.loss[row, option] < self.loss[row, chosen[row]] and (extra_now <= rest).all():
                chosen[row] = option
                rest = rest - extra_now
        return chosen
