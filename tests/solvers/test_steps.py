"""Losses in whole steps: exact where they can be, and never too large."""

import math

import pytest

from fxcompress.solvers import Decision, Interaction, Problem
from fxcompress.solvers.steps import Steps

A = Decision("a", ("x", "y"), (-1.0, 0.5), {})
B = Decision("b", ("x", "y", "z"), (3.0, 5.0, 1003.0), {})
PAIR = Interaction("a", "b", ((0.0, 2.0, 4.0), (1.0, 3.0, -1.0)))


def test_losses_count_from_the_least():
    steps = Steps(Problem((A, B), {}, (PAIR,)))
    assert steps.floor == -1.0 + 3.0 - 1.0
    assert steps.tables == [[0.0, 1.5], [0.0, 2.0, 1000.0], [1.0, 3.0, 5.0, 2.0, 4.0, 0.0]]
    assert steps.above_floor({"a": 1, "b": 1}) == 1.5 + 2.0 + 4.0


def test_counted_in_powers_of_two():
    # 1.5 + 1000 + 5 lies between 2^9 and 2^10, so a step is 2^(10 - 50)
    tables, step = Steps(Problem((A, B), {}, (PAIR,))).count(math.inf)
    assert step == 2.0**-40
    assert tables[0] == [0, 3 * 2**39]
    assert sum(map(max, tables)) < 2**50


def test_what_no_better_choice_holds_is_cut():
    # known 3: nothing above 6 matters. 1.5 + 6 + 5 lies between 2^3 and 2^4
    tables, step = Steps(Problem((A, B), {}, (PAIR,))).count(3.0)
    assert step == 2.0**-46
    assert tables[1] == [0, 2 * 2**46, 6 * 2**46]


def test_rounded_down():
    tables, step = Steps(Problem((Decision("a", ("x", "y", "z"), (0.0, 0.1, 1e9), {}),), {})).count(math.inf)
    assert tables[0][1] * step <= 0.1 < (tables[0][1] + 1) * step


@pytest.mark.parametrize("loss", [0.0, 1e-300, 1e100])
def test_the_whole_range(loss):
    tables, step = Steps(Problem((Decision("a", ("x", "y"), (0.0, loss), {}),), {})).count(math.inf)
    assert tables[0][1] * step == pytest.approx(loss, rel=1e-14, abs=0)


def test_many_options_leave_room_for_their_sum():
    tables, _ = Steps(Problem((Decision("a", tuple(map(str, range(5000))), (0.0, *(1.0,) * 4999), {}),), {})).count(
        1.0
    )
    assert 2**58 < sum(tables[0]) <= 2**60
