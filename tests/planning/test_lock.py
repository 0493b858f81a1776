"""The plan: every decision written down, what it costs, why; and the same bytes for the same inputs."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fxcompress.errors import CompressError
from fxcompress.graph.inputs import as_arguments
from fxcompress.graph.shapes import shapes
from fxcompress.measure.options import survey
from fxcompress.pipeline import plan, transform
from fxcompress.planning.holder import plan_of
from fxcompress.planning.prices import Price
from fxcompress.policies import Plan, Resolve, dump, parse
from fxcompress.policies.rules import is_open


def values(node):
    """Yield each value in a step or a plan."""
    for name in type(node).model_fields:
        value = getattr(node, name)
        inner = value if isinstance(value, tuple) and name == "rules" else (value,)
        for one in inner:
            if hasattr(type(one), "model_fields"):
                yield from values(one)
            else:
                yield name, one


def assert_closed(decided):
    for step in decided.steps:
        assert not [name for name, value in values(step) if name in ("bits", "sparsity") and is_open(value)]
        assert not isinstance(step, Resolve)


def test_every_decision_is_written_down(model, policy, given):
    decided = plan(model, policy(inputs=(4, 8), size="25%", bops="2%"), **given)
    assert isinstance(decided, Plan)
    assert decided.search is None
    assert_closed(decided)
    assert parse(dump(decided), "again") == decided


def test_the_predicted_prices_are_those_of_the_result(model, policy, given):
    decided = plan(model, policy(inputs=(4, "float"), size="30%", bops="5%"), **given)
    gm = transform(model, decided)
    layers = survey(gm, shapes(gm, as_arguments(torch.randn(1, 2, 8))))
    record = decided.plan
    for name in ("size", "bops"):
        total = Price(name, gm).total(layers, {})
        assert record.budgets[name].predicted == getattr(record.totals, name) == total
    for row in record.layers:
        one = layers[row.name]
        assert row.size == Price("size", gm).layer(one.layer, one.option({}))
        assert row.bops == Price("bops", gm).layer(one.layer, one.option({}))
        assert row.sparsity == pytest.approx(one.option({}).sparsity, abs=1e-6)
    zeros = sum(
        (gm.get_submodule(f"{r.name}.weight_mask").mask == 0).sum().item() for r in record.layers if r.sparsity
    )
    assert record.totals.sparsity == pytest.approx(zeros / record.totals.parameters, abs=1e-6)
    assert record.totals.parameters == 24 + 256 + 24


def test_rows_say_what_and_why(model, policy, given):
    wanted = policy(bits=(2, 8), sparsity=None, size="25%")
    wanted["steps"][1]["rules"].append({"select": {"names": ["head"]}, "weight": {"bits": 8}})
    rows = {row.name: row for row in plan(model, wanted, **given).plan.layers}
    assert rows["head"].decision == "W8A8"
    assert rows["head"].why == "stated by quantize rule 2"
    assert rows["head"].expected_loss is None
    assert rows["fc"].decision in ("W2A8", "W8A8")
    assert rows["fc"].why.startswith("int")
    assert rows["fc"].expected_loss > 0
    assert rows["fc"].standard_error > 0
    assert (rows["conv"].kind, rows["conv"].parameters, rows["conv"].macs) == ("conv1d", 24, 192)


def test_without_a_search(model, policy, given):
    decided = plan(model, policy(bits=4, sparsity=0.5), data=given["data"])
    assert decided.plan.solution is None
    assert decided.plan.budgets == {}
    assert {row.decision for row in decided.plan.layers} == {"W4A8, 50% sparse"}
    assert decided.plan.matched == {
        "quantize rule 1": ("conv", "fc", "head"),
        "prune rule 1": ("conv", "fc", "head"),
    }


def test_without_example_inputs_there_is_no_work_to_tell(model, policy):
    record = plan(model, policy(bits=4, inputs=None, sparsity=None)).plan
    assert (record.totals.bops, record.totals.float_bops, record.layers[0].macs) == (None, None, None)
    assert record.totals.size < record.totals.float_size


def test_layers_that_no_rule_speaks_of(model):
    rule = {"select": {"names": ["fc"]}, "weight": {"bits": 4}}
    rows = plan(model, {"version": 1, "steps": [{"kind": "quantize", "rules": [rule]}]}).plan.layers
    assert [(row.decision, row.why) for row in rows] == [
        ("float", "no rule speaks of it"),
        ("W4", "stated by quantize rule 1"),
        ("float", "no rule speaks of it"),
    ]


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


def test_a_tied_weight_is_told_once(policy):
    data = [(torch.randn(8, 4), torch.zeros(8, 4))]
    wanted = policy(bits=(2, 8), sparsity=None, size="100%")
    first, second = plan(Tied(), wanted, data=data, loss=nn.functional.mse_loss).plan.layers
    assert (first.parameters, second.parameters) == (16, 0)
    assert first.decision == second.decision
    assert first.why.endswith("(with b)")


def test_resolve_beside_a_search(model, policy, given):
    wanted = policy(size="30%")
    resolve = {"fc.weight_quantizer_choice": "int4", "fc.weight_mask_choice": "50% sparse"}
    wanted["steps"].append({"kind": "resolve", "choose": resolve})
    decided = plan(model, wanted, **given)
    assert_closed(decided)
    rows = {row.name: row for row in decided.plan.layers}
    assert rows["fc"].decision == "W4A8, 50% sparse"
    assert rows["fc"].expected_loss is None
    again, x = transform(model, decided), torch.randn(3, 2, 8)
    assert torch.equal(again(x), transform(model, wanted, **given)(x))


def test_resolve_of_whole_operators(model):
    steps = [
        {"kind": "supernet", "rules": [{"select": {"names": ["conv"]}, "kernel_size": [1, 3, 5]}]},
        {"kind": "resolve", "choose": {"conv_choice": "kernel_5"}},
        {"kind": "quantize", "rules": [{"weight": {"bits": 8}}]},
    ]
    decided = plan(model, {"version": 1, "steps": steps})
    assert [step.kind for step in decided.steps] == ["supernet", "quantize"]
    assert decided.steps[0].rules[0].kernel_size == 5
    x = torch.randn(2, 2, 8)
    torch.testing.assert_close(transform(model, decided)(x), model(x), atol=0.05, rtol=0.05)


def test_a_supernet_stays_open(model):
    steps = [{"kind": "supernet", "rules": [{"select": {"names": ["conv"]}, "kernel_size": [1, 3, 5]}]}]
    decided = plan(model, {"version": 1, "steps": steps})
    assert decided.steps[0].rules[0].kernel_size == (1, 3, 5)
    x = torch.randn(2, 2, 8)
    assert torch.equal(transform(model, decided)(x), model(x))


def test_the_same_inputs_give_the_same_bytes(model, policy, given):
    wanted = policy(inputs=(4, 8), size="25%")
    assert dump(plan(model, wanted, **given)) == dump(plan(copy.deepcopy(model), wanted, **given))


SCRIPT = """
import torch, torch.nn.functional as F
from torch import nn
from fxcompress.pipeline import plan
from fxcompress.policies import dump
torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
data = [(torch.randn(8, 4), torch.randint(0, 3, (8,))) for _ in range(2)]
rule = {"weight": {"bits": [2, 4, 8]}, "input": {"bits": [4, 8]}}
steps = [{"kind": "quantize", "rules": [rule]}, {"kind": "prune", "rules": [{"sparsity": [0, 0.5]}]}]
policy = {"version": 1, "steps": steps, "search": {"budgets": {"size": "50%", "bops": "3%"}}}
print(dump(plan(model, policy, data=data, loss=F.cross_entropy)))
"""


def test_two_processes_give_the_same_bytes():
    import fxcompress

    path = str(Path(fxcompress.__file__).parent.parent)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
        )
        for seed in ("1", "2")
    ]
    first, second = (process.communicate(timeout=120)[0] for process in running)
    assert b"standard_error" in first
    assert first == second


def test_the_result_carries_its_plan(model, policy, given):
    decided = plan(model, policy(bits=4, sparsity=None), data=given["data"])
    gm = transform(model, decided)
    for one in (gm, copy.deepcopy(gm)):
        assert plan_of(one) == decided
    assert not any("plan" in name for name in gm.state_dict())


def test_other_modules_carry_none(model):
    message = "Net carries no plan: it is not the result of fxcompress.transform or load"
    with pytest.raises(CompressError, match=message):
        plan_of(model)
