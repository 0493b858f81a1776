"""Prices of every option against the graph that the option leads to."""

import itertools
import json

import pytest
import torch
from torch import nn

from fxcompress.errors import NotReadyError, PolicyError
from fxcompress.graph import capture
from fxcompress.graph.inputs import as_arguments
from fxcompress.graph.shapes import shapes
from fxcompress.measure.calibrate import calibrate
from fxcompress.measure.decisions import decisions
from fxcompress.measure.hessian import Estimate
from fxcompress.measure.options import survey
from fxcompress.passes import apply
from fxcompress.pipeline import plan, run
from fxcompress.planning.prices import Price, float_prices, pose
from fxcompress.policies import Resolve, read


def parameters(gm, layer, option):
    """Count weights, as a cost model of a third party."""
    return 0 if layer.weight is None else layer.weight_tensor(gm).numel() * option.weight_bits


def no_number(gm, layer, option):
    """Return what is not a cost."""
    return 0.5


def posed(gm, policy, x):
    """Return the problem that a policy poses, its fixed parts and its decisions."""
    wanted = read(policy)
    original = float_prices(gm, wanted.search, shapes(gm, as_arguments(x)))
    run(wanted.steps, gm)
    calibrate(gm, [x])
    found = decisions(gm)
    estimates = [Estimate((0.0,) * len(d.options), (0.0,) * len(d.options)) for d in found]
    return (*pose(gm, original, found, estimates, wanted.search, shapes(gm, as_arguments(x))), found)


def totals(gm, x, names):
    """Return what a graph without open Choices costs."""
    layers = survey(gm, shapes(gm, as_arguments(x)))
    return {name: Price(name, gm).total(layers, {}) for name in names}


@pytest.mark.parametrize(
    "opened",
    [
        {"bits": (4, 8), "inputs": 8, "sparsity": None},
        {"bits": (4, "float"), "inputs": None, "sparsity": (0.0, 0.5)},
        {"bits": 4, "inputs": (4, "float"), "sparsity": None},
        {"bits": (2, "float"), "inputs": (8, "float"), "sparsity": None},
    ],
    ids=["bits", "bits and sparsity", "inputs", "bits and inputs"],
)
def test_every_choice_costs_what_the_resolved_graph_costs(opened, model, policy):
    x = torch.randn(1, 2, 8)
    budgets = {"size": 10**6, "bops": 10**9}
    problem, fixed, found = posed(capture(model), policy(**opened, **budgets), x)
    everything = list(itertools.product(*(range(len(d.options)) for d in found)))
    for combination in everything[:: max(len(everything) // 12, 1)]:
        gm = capture(model)
        run(read(policy(**opened, **budgets)).steps, gm)
        picks = {}
        for decision, index in zip(found, combination, strict=True):
            picks |= decision.options[index].picks
        apply(Resolve(choose=picks), gm)
        calibrate(gm, [x])
        chosen = {d.name: index for d, index in zip(found, combination, strict=True)}
        predicted = {name: cost + fixed[name] for name, cost in problem.costs_of(chosen).items()}
        assert predicted == totals(gm, x, budgets)


class Shared(nn.Module):
    """Two layers with one weight, two with one input."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
        self.b.weight = self.a.weight

    def forward(self, x):
        y = self.a(x)
        return self.b(y) + self.c(y)


def test_what_is_shared_is_priced_once(policy):
    x, model = torch.randn(1, 4), Shared()
    opened = policy(bits=(4, 8), inputs=(4, 8), sparsity=None, size=10**6)
    problem, fixed, found = posed(capture(model), opened, x)
    assert [d.layers for d in found] == [("a", "b", "c")]  # by a's weight and b's input
    index = next(i for i, o in enumerate(found[0].options) if set(o.picks.values()) == {"int4", "uint4"})
    # two weights of 16 x 4 bits with 4 scales, three biases with 4 scales; two inputs with a scale and a zero point
    assert problem.costs_of({found[0].name: index})["size"] + fixed["size"] == 2 * (8 + 16) + 3 * 32 + 2 * 5


def test_limits_are_without_what_is_spent_anyway(model, policy):
    x = torch.randn(1, 2, 8)
    problem, fixed, _ = posed(capture(model), policy(sparsity=None, size="50%", bops="1 kBOPs"), x)
    whole = 4 * (24 + 4 * 4 + 256 + 8 + 24 + 3)
    assert problem.budgets == {"size": whole // 2 - fixed["size"], "bops": 1000 - fixed["bops"]}
    assert fixed == {"size": 3 * 5, "bops": 0}  # the scales of three inputs


def test_a_cost_model_of_a_third_party(model, policy):
    x = torch.randn(1, 2, 8)
    name = f"{__name__}:parameters"
    wanted = policy(bits=(4, 8), sparsity=None, inputs=None, **{name: "20%"})
    problem, _, _ = posed(capture(model), wanted, x)
    assert problem.budgets == {name: 304 * 32 // 5}
    assert [d.costs[name] for d in problem.decisions] == [(96, 192), (1024, 2048), (96, 192)]


def test_a_cost_that_is_no_whole_number(model, policy):
    name = f"{__name__}:no_number"
    message = f"cost model '{name}' returned 0.5; a cost is an int in the smallest unit"
    with pytest.raises(PolicyError, match=message):
        posed(capture(model), policy(sparsity=None, **{name: 5}), torch.randn(1, 2, 8))


def rows(precisions):
    """Return rows of a latency table: each operator takes some time for each of some bits."""
    return [
        dict(zip(("kind", "input", "weight", "arguments"), operator, strict=True))
        | {"weight_bits": bits, "median": median * factor}
        for operator, median in ROWS.items()
        for bits, factor in precisions.items()
    ]


ROWS = {
    ("conv1d", (1, 2, 8), (4, 2, 3), ((1,), (1,), (1,), 1)): 100,
    ("linear", (1, 32), (8, 32), ()): 200,
    ("linear", (1, 8), (3, 8), ()): 50,
}


def test_latency(tmp_path, model, policy, given):
    table = tmp_path / "table.json"
    content = {"version": 1, "device": "desk", "engine": "hand", "rows": rows({4: 1, 8: 2, 32: 3})}
    table.write_text(json.dumps(content))
    wanted = policy(bits=(4, 8), sparsity=None, inputs=None, latency={"max": "50%", "table": str(table)})
    found = plan(model, wanted, **given).plan.budgets["latency"]
    assert (found.original, found.limit) == (3 * 350, 525)
    assert found.predicted in {100 * a + 200 * b + 50 * c for a in (1, 2) for b in (1, 2) for c in (1, 2)}
    assert found.predicted <= 525


def test_a_table_without_an_entry_that_the_plan_needs(tmp_path, model, policy, given):
    table = tmp_path / "table.json"
    content = {"version": 1, "device": "desk", "engine": "hand", "rows": rows({8: 2})}
    table.write_text(json.dumps(content))
    wanted = policy(bits=(4, 8), sparsity=None, inputs=None, latency={"max": "400 ns", "table": str(table)})
    message = r"has no entry that 'conv' needs: kind conv1d, input \[1, 2, 8\], .* weight_bits 4, input_bits 32"
    with pytest.raises(NotReadyError, match=message):
        plan(model, wanted, **given)
