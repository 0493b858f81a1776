"""The problem checks itself, and knows what a choice costs."""

import math
import re

import pytest

from fxcompress.errors import CompressError, InfeasibleError
from fxcompress.solvers import Allocation, Decision, Interaction, Problem

CONV = Decision("conv", ("int4", "int8"), (0.5, 0.25), {"size": (4, 8)})
FC = Decision("fc", ("int2", "int4", "int8"), (4.0, 2.0, 1.0), {"size": (20, 40, 80)})
PAIR = Interaction("conv", "fc", ((1.0, 0.0, 0.0), (0.125, 0.0, 0.0)))


def test_a_choice_has_a_loss_and_costs():
    problem = Problem((CONV, FC), {"size": 28}, (PAIR,))
    assert problem.loss_of({"conv": 1, "fc": 0}) == 0.25 + 4.0 + 0.125
    assert problem.costs_of({"conv": 1, "fc": 0}) == {"size": 28}
    assert problem.fits({"conv": 1, "fc": 0})
    assert not problem.fits({"conv": 0, "fc": 1})


def test_costs_without_a_budget_are_ignored():
    problem = Problem((CONV, FC), {})
    assert problem.costs_of({"conv": 0, "fc": 0}) == {}
    assert problem.fits({"conv": 1, "fc": 2})


def test_gap():
    found = Allocation({}, objective=2.0, bound=1.5, costs={}, status="feasible")
    assert found.gap == 0.25
    assert Allocation({}, objective=-2.0, bound=-2.5, costs={}, status="feasible").gap == 0.25
    assert Allocation({}, objective=0.0, bound=-1.0, costs={}, status="feasible").gap > 1e300
    assert Allocation({}, objective=2.0, bound=2.0, costs={}, status="optimal").gap == 0.0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((("int4", "int8"), (0.5,), {}), "decision 'conv' has 2 options but 1 losses"),
        ((("int4",), (0.5,), {"size": (4, 8)}), "decision 'conv' has 1 options but 2 costs for 'size'"),
        (((), (), {}), "decision 'conv' has no options"),
        ((("int4", "int8", "int4"), (0.0,) * 3, {}), "decision 'conv' offers 'int4' more than once"),
        ((("int4",), (math.nan,), {}), "decision 'conv': the loss of 'int4' is nan, not a finite number up to 1e100"),
        (
            (("int4",), (-2e100,), {}),
            "decision 'conv': the loss of 'int4' is -2e+100, not a finite number up to 1e100",
        ),
        (
            (("int4",), (0.5,), {"size": (1.5,)}),
            "decision 'conv': the size of 'int4' is 1.5, not an int; count in the smallest unit",
        ),
    ],
)
def test_a_decision_says_what_is_wrong(arguments, text):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        Decision("conv", *arguments)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (((CONV, FC, CONV), {}), "two decisions are named 'conv'"),
        (((CONV,), {"bops": 3}), "decision 'conv' has no costs for the budget 'bops'"),
        (((CONV,), {"size": 3.5}), "the budget 'size' is 3.5, not an int; count in the smallest unit"),
        (
            ((Decision("conv", ("int4", "int8"), (0.0, 0.0), {"size": (0, 2**60)}),), {"size": 1}),
            "the costs for the budget 'size' add up to more than 2^60; count in a larger unit",
        ),
        (((CONV,), {}, (PAIR,)), "the interaction of 'conv' and 'fc': there is no decision 'fc'"),
        (
            ((CONV, FC), {}, (Interaction("fc", "conv", ((0.0, 0.0), (0.0, 0.0))),)),
            "the interaction of 'fc' and 'conv' needs 3 rows of 2 losses, one for each pair of options",
        ),
    ],
)
def test_a_problem_says_what_is_wrong(arguments, text):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        Problem(*arguments)


def test_an_interaction_says_what_is_wrong():
    with pytest.raises(ValueError, match=r"^decision 'conv' interacts with itself; add that loss to its own$"):
        Interaction("conv", "conv", ((0.0,),))
    with pytest.raises(ValueError, match=r"^the interaction of 'a' and 'b' has the loss inf, not a finite number"):
        Interaction("a", "b", ((0.0, math.inf),))


def test_infeasible_error_without_numbers():
    error = InfeasibleError("no")
    assert isinstance(error, CompressError)
    assert (error.asked, error.least, error.together) == ({}, {}, False)
