"""Losses in whole steps: what a solver that counts in integers needs."""

import math
from collections.abc import Mapping
from itertools import chain

from fxcompress.solvers.problem import Problem

SPAN_BITS = 50  # a float64 still holds every such number
SUM_BITS = 60  # 64-bit integers hold the sum over all options


class Steps:
    """Hold the losses of a problem counted from the least of each decision and each interaction.

    `tables` has a row for each decision, then one for each interaction (its table, row by row). `floor` is what was
    taken off in all: no choice has a loss below it.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        tables = [decision.loss for decision in problem.decisions]
        tables += [tuple(chain.from_iterable(pair.loss)) for pair in problem.interactions]
        self.floor = math.fsum(map(min, tables))
        self.tables = [[loss - min(table) for loss in table] for table in tables]

    def above_floor(self, chosen: Mapping[str, int]) -> float:
        """Return how far the loss of a choice lies above `floor`."""
        places = [chosen[decision.name] for decision in self._problem.decisions]
        for pair in self._problem.interactions:
            places.append(chosen[pair.first] * len(pair.loss[0]) + chosen[pair.second])
        return math.fsum(table[place] for table, place in zip(self.tables, places, strict=True))

    def count(self, known: float) -> tuple[list[list[int]], float]:
        """Return the tables in whole steps, rounded down, and the size of a step: a power of two.

        `known` is how far the loss of some choice lies above the floor, infinite without one. No better choice holds
        a larger entry, so entries are cut to twice as much and leave the steps to the others.
        """
        tables = [[min(loss, 2 * known) for loss in table] for table in self.tables]
        span = math.fsum(map(max, tables))
        total = math.fsum(map(math.fsum, tables))
        bits = min(SPAN_BITS - math.frexp(span)[1], SUM_BITS - math.frexp(total)[1])
        return [[int(math.ldexp(loss, bits)) for loss in table] for table in tables], math.ldexp(1.0, -bits)
