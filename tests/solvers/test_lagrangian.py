"""The quick choice fits, and its bound holds, on every instance."""

import pytest

from fxcompress.solvers import Decision, Problem
from fxcompress.solvers.lagrangian import relax


def test_the_bound_of_one_budget_is_that_of_the_linear_relaxation():
    # Half of the step from option 0 to option 1 fits, and saves half of 8: 10 - 4 = 6. No whole step fits.
    problem = Problem((Decision("a", ("int4", "int8"), (10.0, 2.0), {"size": (4, 8)}),), {"size": 6})
    chosen, bound = relax(problem)
    assert chosen == {"a": 0}
    assert bound == pytest.approx(6.0, rel=1e-9)


def test_what_is_left_is_spent():
    # No price takes only one of two equal steps; the second look takes one, since 4 of 6 are left.
    layers = tuple(Decision(name, ("int4", "int8"), (1.0, 0.0), {"size": (4, 8)}) for name in "ab")
    chosen, bound = relax(Problem(layers, {"size": 14}))
    assert sorted(chosen.values()) == [0, 1]
    assert bound == pytest.approx(0.5)


def test_nothing_that_fits():
    problem = Problem((Decision("a", ("int4",), (1.0,), {"size": (4,)}),), {"size": 3})
    assert relax(problem)[0] is None


@pytest.mark.parametrize("losses", ["positive", "negative", "tied", "tiny", "huge", "of every size"])
@pytest.mark.parametrize("pairs", [False, True])
def test_against_brute_force(losses, pairs, random_problem, least_loss):
    found = feasible = 0
    for seed in range(25):
        problem = random_problem(seed, losses, decisions=5, pairs=pairs)
        best = least_loss(problem)
        chosen, bound = relax(problem)
        if best is None:
            assert chosen is None
            continue
        feasible += 1
        assert bound <= best + 1e-15 * abs(best)
        if chosen is not None:
            found += 1
            assert problem.fits(chosen)
    assert found > 0.7 * feasible
