"""Plans of every form of quantizer: the option's own range, what is written down, and the same model again."""

import pytest
import torch
from torch import nn

import fxcompress
from fxcompress.measure.observers import MinMax
from fxcompress.nn import Quantizer
from fxcompress.pipeline import plan, transform
from fxcompress.policies import dump, parse


class ByBits(MinMax):
    """An observer whose answer depends on the bits: few bits clip more."""

    def range_for(self, quantizer):
        low, high = self.range()
        return low * (quantizer.bits / 10), high * (quantizer.bits / 10)


def steps(*rules):
    return {"version": 1, "steps": [{"kind": "quantize", "rules": list(rules)}]}


def searching(*rules, **budgets):
    return steps(*rules) | {"search": {"budgets": budgets}}


@pytest.mark.parametrize("observer", [f"{__name__}:ByBits", "mse"])
@pytest.mark.parametrize("bops", ["3.2%", "6%"])
def test_the_plan_holds_the_range_of_the_option_that_was_chosen(observer, bops, model, given):
    wanted = searching({"weight": {"bits": 8}, "input": {"bits": [4, 8], "observer": observer}}, bops=bops)
    decided = plan(model, wanted, **given)
    chosen = {rule.input.bits for rule in decided.steps[0].rules}
    assert 4 in chosen  # the last bits of the list would be right by chance
    x = torch.cat([batch for batch, _ in given["data"]])
    found, again = transform(model, wanted, **given), transform(model, decided)
    assert torch.equal(found(x), again(x))
    for one, other in zip(found.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    quantizer = found.get_submodule("x_quantizer")
    if observer != "mse":
        low, high = decided.steps[0].ranges["x"]
        assert high == pytest.approx(x.max().item() * quantizer.bits / 10)
        assert quantizer.scale.item() == pytest.approx((high - low) / (2**quantizer.bits - 1))


FORMS = {
    "W16A16": ({"bits": 16}, {"bits": 16}),
    "W4 g5 A8": ({"bits": 4, "per": "group", "group_size": 5}, {"bits": 8}),
    "Wbinary A8 dynamic": ({"bits": "binary"}, {"bits": 8, "dynamic": True}),
    "Wternary Afloat8_e4m3": ({"bits": "ternary", "per": "tensor"}, {"bits": "e4m3"}),
    "Wfloat8_e5m2 A4": ({"bits": "e5m2"}, {"bits": 4, "narrow": True, "symmetric": True}),
    "Wapot3": ({"bits": 3, "codebook": "apot", "observer": "mse"}, None),
    "Wkmeans4 A6": ({"bits": 4, "codebook": "kmeans"}, {"bits": 6, "observer": "entropy"}),
    "A8": ({"bits": "float"}, {"bits": 8}),
}


@pytest.mark.parametrize("decision", FORMS)
def test_from_policy_to_plan_to_files_and_back(decision, model, given, tmp_path):
    weight, input = FORMS[decision]
    wanted = steps({"weight": weight} | ({"input": input} if input else {}))
    found = transform(model, wanted, data=given["data"])
    decided = plan(model, wanted, data=given["data"])
    assert {row.decision for row in decided.plan.layers} == {decision}
    assert parse(dump(decided), "again") == decided
    x = given["data"][0][0]
    assert torch.equal(transform(model, decided)(x), found(x))
    fxcompress.save(found, tmp_path)
    assert torch.equal(fxcompress.load(tmp_path, model)(x), found(x))


def test_group_sizes_are_bought(model, given):
    rule = {"weight": {"bits": ["ternary", 4, "float"], "per": "group", "group_size": [2, 16]}}
    for size in ("25%", "45%", "80%"):
        wanted = searching(rule, size=size)
        decided = plan(model, wanted, **given)
        x = given["data"][0][0]
        assert torch.equal(transform(model, decided)(x), transform(model, wanted, **given)(x))
        assert decided.plan.budgets["size"].predicted == decided.plan.totals.size
        for row in decided.plan.layers:
            assert row.decision in ("Wternary g2", "Wternary g16", "W4 g2", "W4 g16", "float")
        for stated in decided.steps[0].rules:
            weight = stated.weight.plain()
            assert weight["bits"] == "float" or weight["group_size"] in (2, 16)


def test_a_resolve_step_is_written_as_what_it_took(model):
    weight = {"bits": ["ternary", 8], "per": "group", "group_size": [4, 8]}
    names = ("conv", "fc", "head")
    choose = dict(zip(names, ("ternary g4", "int8 g8", "ternary g8"), strict=True))
    wanted = steps({"weight": weight})
    taken = {f"{name}.weight_quantizer_choice": label for name, label in choose.items()}
    wanted["steps"].append({"kind": "resolve", "choose": taken})
    wanted["search"] = {"budgets": {"size": "100%"}, "sensitivity": f"{__name__}:nothing"}
    decided = plan(model, wanted)
    said = {rule.select.names: rule.weight.plain() for rule in decided.steps[0].rules}
    assert said == {
        ("conv",): {"bits": "ternary", "per": "group", "group_size": 4},
        ("fc",): {"bits": 8, "per": "group", "group_size": 8},
        ("head",): {"bits": "ternary", "per": "group", "group_size": 8},
    }
    labels = {str(one) for one in transform(model, decided).modules() if isinstance(one, Quantizer)}
    assert len(labels) == 3


def nothing(gm, decisions, data, loss):
    """Measure nothing: all is resolved."""
    assert not decisions
    return []


def test_each_of_two_steps_takes_its_own_ranges():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), torch.randn(8, 4)
    both = [{"kind": "quantize", "rules": [{"select": {"names": [n]}, "input": {"bits": 8}}]} for n in ("0", "2")]
    decided = plan(model, {"version": 1, "steps": both}, data=[x])
    assert [list(step.ranges) for step in decided.steps] == [["input_1"], ["_1"]]
    once = transform(model, steps({"input": {"bits": 8}}), data=[x])
    assert torch.equal(transform(model, decided)(x), once(x))
