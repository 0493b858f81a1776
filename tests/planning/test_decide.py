"""Deciding: budgets of every kind, what is refused, and the user's own sensitivity and solver."""

import itertools
import re

import pytest
import torch
import torch.nn.functional as F

from fxcompress.errors import InfeasibleError, NotReadyError, PolicyError
from fxcompress.measure.hessian import Estimate
from fxcompress.pipeline import plan
from fxcompress.solvers import Allocation, exact

SEEN = []


def by_bits(gm, decisions, data, loss, *, scale=1.0):
    """Expect less loss from more bits, and half as much more from zeros."""
    SEEN.append((data, loss))
    answers = []
    for decision in decisions:
        rises = []
        for option in decision.options:
            said = {field: value for fields in option.settings.values() for field, value in fields.items()}
            rises.append(scale * (1 + said.get("sparsity", 0.0)) / said.get("weight.bits", 8))
        answers.append(Estimate(tuple(rises), (0.0,) * len(rises)))
    return answers


def first_that_fits(problem):
    """Choose with CP-SAT, and leave a trace."""
    SEEN.append(problem)
    return exact(problem)


def coarseness(gm, layer, option):
    """Cost what is missing to 8 bits."""
    return 0 if layer.weight is None else 8 - option.weight_bits


def not_a_number(gm, decisions, data, loss):
    """Return what is not a rise of the loss."""
    return [Estimate((float("nan"),) * len(d.options), ()) for d in decisions]


def too_few(gm, decisions, data, loss):
    """Return an estimate too few."""
    return by_bits(gm, decisions, data, loss)[1:]


def dearest(problem):
    """Choose the last option of each decision, whatever it costs."""
    chosen = {d.name: len(d.options) - 1 for d in problem.decisions}
    return Allocation(chosen, 0.0, 0.0, problem.costs_of(chosen), "feasible")


def searching(policy, **search):
    return policy | {"search": policy["search"] | search}


def ours(policy, **kwargs):
    return searching(policy, sensitivity={f"{__name__}:by_bits": kwargs})


def said(decided):
    """Return bits and sparsity by layer, from the closed steps of a plan."""
    fields = {}
    for step in decided.steps:
        for rule in getattr(step, "rules", ()):
            for name in rule.select.names:
                weight = getattr(rule, "weight", None)
                fields.setdefault(name, []).append(weight.bits if weight else getattr(rule, "sparsity", None))
    return {name: tuple(values) for name, values in fields.items()}


def test_bits_and_sparsity_are_bought_together(model, policy):
    # 192 products of conv, 256 of fc, 24 of head. Bits cost 8 input bits each, zeros take half of the work away.
    # The loss is (1 + sparsity) / bits: the best of all 6^3 plans within the budget is searched for here.
    work = {"conv": 192, "fc": 256, "head": 24}
    options = list(itertools.product((2, 4, 8), (0.0, 0.5)))
    limit = 8000

    def loss(plans):
        return sum((1 + share) / bits for bits, share in plans)

    def cost(plans):
        return sum(n * 8 * bits * (1 - share) for n, (bits, share) in zip(work.values(), plans, strict=True))

    best = min((p for p in itertools.product(options, repeat=3) if cost(p) <= limit), key=loss)
    decided = plan(model, ours(policy(bops=limit)), example_inputs=torch.randn(1, 2, 8), data=[torch.randn(4, 2, 8)])
    assert decided.plan.solution.objective == pytest.approx(loss(best))
    assert decided.plan.budgets["bops"].predicted <= limit
    assert loss(said(decided).values()) == pytest.approx(loss(best))


@pytest.mark.parametrize(
    ("asked", "limit"),
    [("25%", 331), ("331 B", 331), (331, 331), ("0.331 kB", 331), ("0.3232421875 KiB", 331)],
)
def test_a_budget_in_any_unit(asked, limit, model, policy, given):
    found = plan(model, policy(size=asked), **given).plan.budgets["size"]
    assert found.limit == limit
    assert found.predicted <= limit
    assert found.original == 1324


def test_several_budgets_hold_at_once(model, policy, given):
    budgets = plan(model, policy(size="25%", bops="2%"), **given).plan.budgets
    assert budgets["size"].predicted <= budgets["size"].limit == 331
    assert budgets["bops"].predicted <= budgets["bops"].limit == 483328 * 2 // 100


def test_a_roomy_budget_takes_the_least_loss(model, policy, given):
    decided = plan(model, policy(size="100%"), **given)
    assert set(said(decided).values()) == {(8, 0.0)}
    assert decided.plan.solution.gap == 0


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ({"size": "5%"}, r"size: at most 5% \(66 B\) asked, at least 271 B needed"),
        ({"size": "0.1 kB"}, r"size: at most 100 B asked, at least 271 B needed$"),
        ({"bops": "1 kBOPs"}, r"bops: at most 1 kBOPs asked, at least 3.776 kBOPs needed$"),
        (
            {"size": 100, "bops": "0.1%"},
            r"size: at most 100 B .* 271 B needed; bops: at most 0.1% \(483 BOPs\) asked",
        ),
    ],
)
def test_an_impossible_budget_names_what_would_fit(budgets, message, model, policy, given):
    with pytest.raises(InfeasibleError, match=f"no choice of options meets the budgets: {message}") as caught:
        plan(model, policy(**budgets), **given)
    (name, *_), text = list(budgets), str(caught.value)
    least = re.findall(r"at least ([0-9.]+ \w+) needed", text)
    fitting = dict(zip(budgets, least, strict=True))
    assert plan(model, policy(**fitting), **given).plan.budgets[name].predicted > 0
    assert caught.value.asked.keys() == budgets.keys()


def test_the_least_value_is_rounded_up(policy, given):
    wide = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 977), torch.nn.Linear(977, 3))
    with pytest.raises(InfeasibleError) as caught:
        plan(wide, policy(sparsity=None, inputs=None, size="1 kB"), **given)
    # 16 x 977 and 977 x 3 weights of 2 bits, 980 scales, 980 biases
    least = -(-977 * 16 // 4) + -(-977 * 3 // 4) + 980 * 8
    shown = re.search(r"at least ([0-9.]+ kB) needed", str(caught.value))[1]
    assert float(shown.removesuffix(" kB")) * 1000 == pytest.approx(-(-least // 10) * 10)
    assert plan(wide, policy(sparsity=None, inputs=None, size=shown), **given).plan.totals.size == least


def test_budgets_that_conflict_only_together(model, policy, given):
    coarse = f"{__name__}:coarseness"
    wanted = {"size": "290 B", coarse: 4}
    for name, amount in wanted.items():
        plan(model, policy(**{name: amount}), **given)
    with pytest.raises(InfeasibleError, match=f"size and {coarse} together: size would fit at") as caught:
        plan(model, policy(**wanted), **given)
    fits = re.search(r"size would fit at (\d+ B) \(290 B asked\) with \S+ kept; ", str(caught.value))[1]
    budgets = plan(model, policy(**wanted | {"size": fits}), **given).plan.budgets
    assert budgets["size"].predicted == budgets["size"].limit
    with pytest.raises(InfeasibleError):
        plan(model, policy(**wanted | {"size": budgets["size"].limit - 1}), **given)


def test_missing_data_or_loss(model, policy, given):
    with pytest.raises(
        NotReadyError, match=r"search\.sensitivity hessian_trace needs data and loss: pass data=loader"
    ):
        plan(model, policy(inputs=None, size="25%"))
    with pytest.raises(NotReadyError, match=r"search\.sensitivity hessian_trace needs loss: pass data=loader"):
        plan(model, policy(size="25%"), data=given["data"])


def test_a_sensitivity_of_a_third_party(model, policy, given):
    SEEN.clear()
    decided = plan(model, ours(policy(size="25%"), scale=2.0), **given)
    assert SEEN.pop() == (given["data"], F.cross_entropy)
    expected = [2 * (1 + share) / bits for bits in (2, 4, 8) for share in (0, 0.5)]
    assert decided.plan.layers[0].expected_loss in expected


def test_a_solver_of_a_third_party(model, policy, given):
    SEEN.clear()
    decided = plan(model, searching(policy(size="25%"), solver=f"{__name__}:first_that_fits"), **given)
    assert [d.name for d in SEEN[0].decisions] == ["conv.weight", "fc.weight", "head.weight"]
    assert decided.plan.solution.solver == f"{__name__}:first_that_fits"


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (
            {"sensitivity": f"{__name__}:not_a_number"},
            "returned .*nan.* for 'conv.weight'; it has 6 options, and each",
        ),
        ({"sensitivity": f"{__name__}:too_few"}, "returned 2 estimates for 3 decisions"),
        ({"solver": f"{__name__}:dearest"}, "returned a choice that does not meet the budgets"),
    ],
)
def test_wrong_answers_of_a_third_party(search, message, model, policy, given):
    ((kind, name),) = search.items()
    with pytest.raises(PolicyError, match=f"{kind} '{name}' {message}"):
        plan(model, searching(policy(size="25%"), **search), **given)


def test_whole_operators_are_refused(model, policy, given):
    wanted = policy(size="25%", sparsity=None)
    step = {"kind": "supernet", "rules": [{"select": {"names": ["conv"]}, "kernel_size": [1, 3]}]}
    message = (
        r"'conv_choice' offers whole operators \(kernel_1 \| kernel_3\), which this sensitivity cannot price; "
        "decide it with a resolve step before the search, or write one kernel_size"
    )
    with pytest.raises(NotReadyError, match=message):
        plan(model, wanted | {"steps": [step, *wanted["steps"][1:]]}, **given)
