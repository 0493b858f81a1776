"""What conflicts, what would fit, and why each decision got its option: whole sentences, solved by hand."""

import pytest

from fxcompress.errors import InfeasibleError
from fxcompress.solvers import Allocation, Decision, Interaction, Problem, exact, least_feasible, why
from fxcompress.solvers.explain import infeasible


def kib(budget, amount):
    return f"{amount / 1024:g} KiB" if budget == "size" else f"{amount} bit operations"


def conflict_of(problem):
    with pytest.raises(InfeasibleError) as error:
        exact(problem)
    return error.value


# Per layer: int4 is small, int8 needs fewer operations (as on a target that emulates int4).
CONV = Decision("conv", ("int4", "int8"), (0.5, 0.25), {"size": (4, 8), "bops": (900, 700)})
FC = Decision("fc", ("int4", "int8"), (0.25, 0.0), {"size": (1000, 2000), "bops": (60, 50)})


def test_a_budget_that_fails_alone():
    # both at int4: 4 + 1000
    error = conflict_of(Problem((CONV, FC), {"size": 1003, "bops": 5000}))
    assert str(error) == "no choice of options meets the budgets: size: at most 1,003 asked, at least 1,004 needed"
    assert (error.asked, error.least, error.together) == ({"size": 1003}, {"size": 1004}, False)


def test_the_least_keeps_the_other_budgets():
    # at most 760 operations: conv at int8 (700), fc at int4 (60); so the size is 8 + 1000, not 4 + 1000
    error = conflict_of(Problem((CONV, FC), {"size": 1003, "bops": 760}))
    assert error.least == {"size": 1008}


def test_two_budgets_that_fail_alone():
    error = conflict_of(Problem((CONV, FC), {"size": -5, "bops": 749}))
    assert str(error) == (
        "no choice of options meets the budgets: size: at most -5 asked, at least 1,004 needed; "
        "bops: at most 749 asked, at least 750 needed"
    )
    assert not error.together


def test_two_budgets_that_fail_together():
    # size 1,004: both int4, 960 operations; 750 operations: both int8, size 2,008
    error = conflict_of(Problem((CONV, FC), {"size": 1004, "bops": 750}))
    assert str(error) == (
        "no choice of options meets the budgets: size and bops together: "
        "size would fit at 2,008 (1,004 asked) with bops kept; bops would fit at 960 (750 asked) with size kept"
    )
    assert (error.asked, error.least) == ({"size": 1004, "bops": 750}, {"size": 2008, "bops": 960})
    assert error.together


def one_of_four(**limits):
    """Each option is expensive in one of four budgets."""
    costs = {name: tuple(9 if index == at else 1 for at in range(4)) for index, name in enumerate("abcd")}
    return Problem((Decision("layer", tuple("wxyz"), (0.0,) * 4, costs),), limits)


def test_four_budgets_that_fail_together():
    # a, b and c at 5 leave only z, which d at 5 forbids
    exact(one_of_four(a=5, b=5, c=5, d=9))
    error = conflict_of(one_of_four(a=5, b=5, c=5, d=5))
    assert str(error) == (
        "no choice of options meets the budgets: a, b, c and d together: "
        "a would fit at 9 (5 asked) with b, c and d kept; b would fit at 9 (5 asked) with a, c and d kept; "
        "c would fit at 9 (5 asked) with a, b and d kept; d would fit at 9 (5 asked) with a, b and c kept"
    )


def test_only_budgets_of_the_conflict_are_named():
    # `left` and `right` want opposite options, `size` allows both
    layer = Decision("layer", ("a", "b"), (0.0, 0.0), {"left": (1, 9), "size": (3, 4), "right": (9, 1)})
    error = conflict_of(Problem((layer,), {"left": 5, "size": 4, "right": 5}))
    assert error.asked == {"left": 5, "right": 5}
    # p against q, and r against s: one conflict at a time
    twice = Problem(
        (
            Decision("one", ("a", "b"), (0.0, 0.0), {"p": (1, 9), "q": (9, 1), "r": (0, 0), "s": (0, 0)}),
            Decision("two", ("a", "b"), (0.0, 0.0), {"p": (0, 0), "q": (0, 0), "r": (1, 9), "s": (9, 1)}),
        ),
        {"p": 5, "q": 5, "r": 5, "s": 5},
    )
    error = conflict_of(twice)
    assert error.asked == {"r": 5, "s": 5}
    assert error.least == {"r": 9, "s": 9}


def test_amounts_can_be_shown_in_units():
    problem = Problem((CONV, FC), {"size": 512})
    assert "size: at most 0.5 KiB asked, at least 0.980469 KiB needed" in str(infeasible(problem, show=kib))


@pytest.mark.parametrize("part", range(4))
def test_the_least_that_fits_against_brute_force(part, random_problem, all_choices):
    for seed in range(15 * part, 15 * part + 15):
        problem = random_problem(seed, decisions=5)
        spent = [problem.costs_of(chosen) for chosen in all_choices(problem)]
        least = least_feasible(problem)
        assert set(least) == set(problem.budgets)
        for budget, amount in least.items():
            others = [other for other in problem.budgets if other != budget]
            kept = [costs[budget] for costs in spent if all(costs[name] <= problem.budgets[name] for name in others)]
            assert amount == min(kept or [costs[budget] for costs in spent])
        if not any(all(costs[name] <= limit for name, limit in problem.budgets.items()) for costs in spent):
            conflict_is_real(conflict_of(problem), spent)


def conflict_is_real(error, spent):
    """None of all choices meets what is named; every single one could be met, alone or without one other."""

    def met(names):
        return any(all(costs[name] <= error.asked[name] for name in names) for costs in spent)

    assert error.asked
    if error.together:
        assert not met(error.asked)
        assert all(met([name for name in error.asked if name != dropped]) for dropped in error.asked)
    else:
        assert not any(met([name]) for name in error.asked)


def test_why():
    # Size 1,010: fc at int8 alone needs 2,000, so fc takes int4; 10 are left, conv at int8 needs 8.
    problem = Problem((CONV, FC, Decision("first", ("int8",), (0.0,), {"size": (0,), "bops": (0,)})), {"size": 1010})
    assert why(problem, exact(problem)) == {
        "conv": "int8: no other option has less loss; the cheaper int4 would raise the loss by 0.25",
        "fc": "int4: the least loss that fits; int8 would lower the loss by 0.25 but needs 1,000 more size (2 left)",
        "first": "int8: the only option",
    }


def test_why_in_units_and_for_two_budgets():
    wide = Decision("wide", ("int2", "int4", "int8"), (3.0, 1.0, 0.5), {"size": (0, 2048, 6144), "bops": (1, 2, 9)})
    problem = Problem((wide,), {"size": 3072, "bops": 5})
    assert why(problem, exact(problem), kib) == {
        "wide": "int4: the least loss that fits; int8 would lower the loss by 0.5 but needs 4 KiB more size "
        "(1 KiB left) and 7 bit operations more bops (3 bit operations left)"
    }
    roomy = Problem((wide,), {"size": 3072, "bops": 50})
    assert why(roomy, exact(roomy))["wide"].endswith("but needs 4,096 more size (1,024 left)")


def test_why_names_the_nearest_option():
    layer = Decision("layer", ("int2", "int4", "int8"), (3.0, 1.0, 0.5), {"size": (2, 4, 8)})
    problem = Problem((layer,), {"size": 3})
    assert "int4 would lower the loss by 2 but needs 2 more size (1 left)" in why(problem, exact(problem))["layer"]
    problem = Problem((layer,), {"size": 8})
    assert why(problem, exact(problem))["layer"].endswith("the cheaper int4 would raise the loss by 0.5")


def test_why_without_a_cheaper_option_or_a_budget():
    layer = Decision("layer", ("int4", "int8"), (0.5, 0.25), {"size": (8, 8)})
    for budgets in ({"size": 9}, {}):
        problem = Problem((layer,), budgets)
        assert why(problem, exact(problem)) == {"layer": "int8: no other option has less loss"}


@pytest.mark.parametrize("names", ["ab", "ba"])
def test_why_counts_interactions_with_what_the_others_took(names):
    # Alone int4 would be better for both; together they lose 3.
    a = Decision("a", ("int4", "int8"), (0.0, 1.0), {"size": (4, 8)})
    b = Decision("b", ("int4", "int8"), (0.0, 2.0), {"size": (4, 8)})
    problem = Problem((a, b), {"size": 16}, (Interaction(*names, ((3.0, 0.0), (0.0, 0.0))),))
    assert why(problem, exact(problem)) == {
        "a": "int8: no other option has less loss; the cheaper int4 would raise the loss by 2",
        "b": "int4: no other option has less loss",
    }


def test_why_does_not_count_what_rounds_away():
    layer = Decision("layer", ("int4", "int8"), (1.0 + 2e-16, 1.0), {"size": (4, 8)})
    proven = Allocation({"layer": 0}, objective=1.0, bound=1.0, costs={"size": 4}, status="optimal")
    assert why(Problem((layer,), {"size": 8}), proven) == {"layer": "int4: no other option has less loss"}


def test_why_of_a_choice_that_is_not_proven():
    problem = Problem((CONV,), {"size": 8})
    hasty = Allocation({"conv": 0}, objective=0.5, bound=0.25, costs={"size": 4}, status="feasible")
    assert why(problem, hasty) == {
        "conv": "int4: the best found when the time ended; int8 would lower the loss by 0.25 and fits"
    }
