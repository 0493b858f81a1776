"""The exact solver against instances solved by hand and against brute force."""

import sys
from dataclasses import replace

import pytest

from fxcompress.errors import CompressError, InfeasibleError
from fxcompress.solvers import Decision, Interaction, Problem, exact
from fxcompress.solvers.cp_sat import minimize
from fxcompress.solvers.lagrangian import relax


def decide(name, loss, **costs):
    return Decision(name, tuple(f"option{index}" for index in range(len(loss))), loss, costs)


def check(problem, least_loss):
    best = least_loss(problem)
    if best is None:
        with pytest.raises(InfeasibleError):
            exact(problem)
        return
    found = exact(problem)
    assert found.status == "optimal"
    assert found.gap == 0
    assert found.bound == found.objective == problem.loss_of(found.chosen)
    assert found.costs == problem.costs_of(found.chosen)
    assert problem.fits(found.chosen)
    assert found.objective == pytest.approx(best, rel=1e-12, abs=0)


def test_solved_by_hand():
    # size 10:  a0 b0 costs 4, loss 9;  a1 b0: 8, loss 5;  a0 b1: 9, loss 6;  a1 b1: 13 does not fit.
    # Going by loss saved for each byte, b1 (3/5) loses to a1 (4/4), after which b1 no longer fits: 5.
    problem = Problem((decide("a", (5.0, 1.0), size=(2, 6)), decide("b", (4.0, 1.0), size=(2, 7))), {"size": 10})
    found = exact(problem)
    assert found.chosen == {"a": 1, "b": 0}
    assert (found.objective, found.bound, found.status, found.costs) == (5.0, 5.0, "optimal", {"size": 8})


def test_the_best_ratio_first_is_not_best():
    # Size 6. a1 saves 5 for 3, b1 saves 4 for 3, c1 saves 10 for 5: c1 has the best ratio, but a1 b1 saves 9 and
    # c1 alone 10, while nothing else fits beside c1. With 9 saved at c = 9 it turns around.
    a, b = decide("a", (5.0, 0.0), size=(0, 3)), decide("b", (4.0, 0.0), size=(0, 3))
    assert exact(Problem((a, b, decide("c", (10.0, 0.0), size=(0, 5))), {"size": 6})).chosen == {
        "a": 0,
        "b": 0,
        "c": 1,
    }
    assert exact(Problem((a, b, decide("c", (8.9, 0.0), size=(0, 5))), {"size": 6})).chosen == {
        "a": 1,
        "b": 1,
        "c": 0,
    }


def test_an_exactly_tight_budget_is_feasible():
    problem = Problem((decide("a", (1.0, 0.0), size=(3, 7)), decide("b", (1.0, 0.0), size=(11, 13))), {"size": 20})
    assert exact(problem).costs == {"size": 20}


def test_nothing_to_decide():
    assert exact(Problem((), {"size": 0})).chosen == {}
    with pytest.raises(InfeasibleError, match="size: at most -3 asked, at least 0 needed"):
        exact(Problem((), {"size": -3}))


def test_negative_costs_make_room():
    # a1 gives 4 back, which pays for b1: -4 + 3 = -1.
    problem = Problem((decide("a", (0.0, 1.0), size=(0, -4)), decide("b", (3.0, 0.0), size=(0, 3))), {"size": -1})
    assert exact(problem).chosen == {"a": 1, "b": 1}


def test_costs_up_to_the_limit():
    big = 2**58
    problem = Problem(
        (decide("a", (1.0, 0.0), size=(big - 1, big)), decide("b", (2.0, 0.0), size=(1, 2))), {"size": big + 1}
    )
    assert exact(problem).chosen == {"a": 0, "b": 1}
    assert exact(Problem(problem.decisions, {"size": 10**30})).objective == 0.0
    with pytest.raises(InfeasibleError):
        exact(Problem(problem.decisions, {"size": -(10**30)}))


def test_a_tie_in_loss_takes_the_cheaper_option():
    problem = Problem(
        (decide("a", (1.0, 1.0, 1.0), size=(5, 3, 4)), decide("b", (1.0, 0.0), size=(1, 2))), {"size": 9}
    )
    assert exact(problem).chosen == {"a": 1, "b": 1}


def test_a_pair_may_be_worth_more_than_either():
    # Alone a1 and b1 each add 1, together they take 3 away: 1 + 1 - 3 = -1 beats 0.
    a, b = decide("a", (0.0, 1.0), size=(2, 1)), decide("b", (0.0, 1.0), size=(2, 1))
    pair = Interaction("a", "b", ((0.0, 0.0), (0.0, -3.0)))
    found = exact(Problem((a, b), {"size": 4}, (pair,)))
    assert (found.chosen, found.objective, found.costs) == ({"a": 1, "b": 1}, -1.0, {"size": 2})


def test_a_loss_that_forbids_does_not_blur_the_others():
    # `last` must not take the option of loss 1e30. The first four must spend exactly 7 of `left` and 8 of `right`,
    # which a price on either does not find: 3 + 4 = 7 and 1 + 7 = 8, or the other way 7 and 1 + 3 + 4.
    split = [decide(f"x{w}", (0.0, 0.0), left=(w, 0), right=(0, w), rest=(0, 0)) for w in (1, 3, 4, 7)]
    small = [decide(f"y{w}", (w * 1e-3, 0.0), left=(0, 0), right=(0, 0), rest=(0, 1)) for w in (1, 2)]
    last = decide("last", (1e30, 0.0), left=(0, 0), right=(0, 0), rest=(0, 1))
    problem = Problem((*split, *small, last), {"left": 7, "right": 8, "rest": 2})
    found = exact(problem)
    assert (found.objective, found.status) == (1e-3, "optimal")


@pytest.mark.parametrize("losses", ["positive", "negative", "tied", "zero", "tiny", "huge", "of every size"])
@pytest.mark.parametrize("part", range(4))
def test_against_brute_force(losses, part, random_problem, least_loss):
    for seed in range(15 * part, 15 * part + 15):
        check(random_problem(seed, losses), least_loss)


@pytest.mark.parametrize("losses", ["positive", "negative", "tied", "tiny", "huge", "of every size"])
def test_interactions_against_brute_force(losses, random_problem, least_loss):
    for seed in range(20):
        check(random_problem(seed, losses, decisions=5, pairs=True), least_loss)


def wide_problem():
    """Three options each for 200 decisions, and a budget between the least and the most."""
    decisions = tuple(
        decide(f"layer{index}", (16.0 * scale, 4.0 * scale, scale), size=(2 * cost, 4 * cost, 8 * cost + index % 7))
        for index in range(200)
        for scale, cost in [(1.37 ** (index * 13 % 31) * 1e-3, 1000 + 7919 * index % 4099)]
    )
    return Problem(decisions, {"size": sum(decision.costs["size"][1] for decision in decisions)})


def test_the_same_answer_on_every_run():
    problem = wide_problem()
    assert exact(problem, seed=3) == exact(problem, seed=3)


def test_no_time_still_gives_a_choice_and_a_bound():
    problem = wide_problem()
    hasty, proven = exact(problem, time_limit=1e-9), exact(problem)
    assert (hasty.status, proven.status) == ("feasible", "optimal")
    assert problem.fits(hasty.chosen)
    assert hasty.bound <= proven.objective <= hasty.objective
    assert 0 < hasty.gap < 0.01


def test_a_bound_from_cp_sat_counts_without_its_proof(monkeypatch):
    def minimize_halfway(*args, **kwargs):
        return replace(minimize(*args, **kwargs), status="feasible")

    # by name the package holds the function, not its module
    monkeypatch.setattr(sys.modules["fxcompress.solvers.exact"], "minimize", minimize_halfway)
    # three equal steps of 4, of which 10 pays two; the relaxation sees two and a half
    problem = Problem(tuple(decide(name, (1.0, 0.0), size=(0, 4)) for name in "abc"), {"size": 10})
    assert relax(problem)[1] == pytest.approx(0.5)
    assert exact(problem).bound == pytest.approx(1.0)


def test_no_time_and_no_choice():
    # each weight goes left or right, and both sides must come out exactly: no price on a side finds that
    weights = [173, 211, 307, 401, 509, 613, 701, 809, 907, 1009]
    sides = tuple(decide(f"x{w}", (0.0, 0.0), left=(w, 0), right=(0, w)) for w in weights)
    left = 173 + 401 + 613 + 1009
    problem = Problem(sides, {"left": left, "right": sum(weights) - left})
    with pytest.raises(CompressError) as error:
        exact(problem, time_limit=1e-9)
    assert str(error.value) == (
        "found no choice that meets the budgets in 1e-09 s, nor a proof that there is none; raise time_limit"
    )
    assert exact(problem).costs == problem.budgets


def test_time_limit_is_checked():
    with pytest.raises(ValueError, match=r"^time_limit is 0, not a number of seconds above 0$"):
        exact(Problem((), {}), time_limit=0)
