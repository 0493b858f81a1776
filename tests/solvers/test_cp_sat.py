"""The model in whole numbers: weights, hints and statuses."""

from fxcompress.solvers import Decision, Interaction, Problem
from fxcompress.solvers.cp_sat import Answer, minimize

A = Decision("a", ("x", "y"), (0.0, 0.0), {"size": (100, 106)})
B = Decision("b", ("x", "y"), (0.0, 0.0), {"size": (100, 109)})


def test_weights_take_the_place_of_losses():
    # 6 or 9 over the 200 that are spent anyway, not both
    problem = Problem((A, B), {"size": 214})
    assert minimize(problem, [[5, 0], [4, 0]], time_limit=10) == Answer("optimal", {"a": 1, "b": 0}, 4)
    assert minimize(problem, [[5, 0], [6, 0]], time_limit=10) == Answer("optimal", {"a": 0, "b": 1}, 5)


def test_a_pair_is_weighed_row_by_row():
    pair = Interaction("a", "b", ((0.0, 0.0), (0.0, 0.0)))
    problem = Problem((A, B), {"size": 300}, (pair,))
    for place, (a, b) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        table = [7] * 4
        table[place] = 2
        assert minimize(problem, [[0, 0], [0, 0], table], time_limit=10) == Answer("optimal", {"a": a, "b": b}, 2)


def test_infeasible():
    assert minimize(Problem((A, B), {"size": 199}), [[0, 0], [0, 0]], time_limit=10).status == "infeasible"


def test_out_of_time():
    answer = minimize(Problem((A, B), {"size": 214}), [[5, 0], [4, 0]], hint={"a": 1, "b": 0}, time_limit=-1.0)
    assert answer == Answer("unknown", None, 0)
