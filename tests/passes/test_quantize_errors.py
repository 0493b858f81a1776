"""quantize: what it refuses, and what it says."""

import pytest
import torch
from torch import nn

from fxcompress.errors import NotReadyError, PassError, PolicyError
from fxcompress.graph import capture
from fxcompress.policies import Quantize


def quantize(*rules):
    return Quantize(rules=rules)


def test_without_calibration_it_is_not_ready(do, residual):
    gm = do(capture(residual), quantize({"weight": {"bits": 8}}))
    with pytest.raises(NotReadyError, match=r"Quantizer\(int8, per channel\) was called before it got a range"):
        gm(torch.randn(1, 2))


def test_rules_that_disagree_on_a_shared_input(do, residual):
    rules = ({"input": {"bits": 8}}, {"select": {"names": ["b"]}, "input": {"bits": 4}})
    message = (
        "tensor 'x' is shared by 'a' and 'b', but their rules disagree: "
        "quantize rule 1 says {'bits': 8}, quantize rule 2 says {'bits': 4}; state one for both"
    )
    with pytest.raises(PassError, match=message):
        do(capture(residual), quantize(*rules))


def test_rules_that_disagree_on_a_tied_weight(do, tied):
    rules = ({"weight": {"bits": 8}}, {"select": {"names": ["b"]}, "weight": {"per": "tensor"}})
    message = "tensor 'a.weight' is shared by 'a' and 'b', but their rules disagree: quantize rule 1 says"
    with pytest.raises(PassError, match=message):
        do(capture(tied), quantize(*rules))


def test_a_second_step_on_the_same_tensor(do, residual):
    message = (
        r"quantize rule 1: tensor 'x' already has Quantizer\(uint8, per tensor\) from an earlier step; "
        "state it in one step"
    )
    rules = ({"select": {"names": [name]}, "input": {"bits": 8}} for name in "ab")
    with pytest.raises(PassError, match=message):
        do(capture(residual), *map(quantize, rules))


@pytest.mark.parametrize("field", ["weight", "input"])
def test_a_rule_without_bits(field, do, residual):
    message = f"quantize rule 1: {field} of 'a' has no bits; write for example '{field}: {{bits: 8}}'"
    with pytest.raises(PolicyError, match=message):
        do(capture(residual), quantize({field: {"symmetric": True}}))


def test_a_rule_for_the_weight_of_an_add(do, residual):
    with pytest.raises(PassError, match=r"quantize rule 1: 'add' \(add\) has no weight; state its input"):
        do(capture(residual), quantize({"select": {"ops": ["add"]}, "weight": {"bits": 8}}))


def test_a_range_of_no_tensor(do):
    step = Quantize(rules=[{"input": {"bits": 8}}], ranges={"inptu": (0.0, 1.0)})
    said = r"quantize: ranges: no rule quantizes an input named 'inptu' \(did you mean 'input_1'\?\)"
    with pytest.raises(PolicyError, match=said):
        do(capture(nn.Sequential(nn.Linear(2, 2))), step)


def test_a_range_of_a_weight_or_of_a_dynamic_input(do):
    net = nn.Sequential(nn.Linear(2, 2))
    rule = {"weight": {"bits": 8}, "input": {"bits": 8, "dynamic": True}}
    for name, said in (
        ("0.weight", r"quantize: ranges: no rule quantizes an input named '0\.weight'"),
        ("input_1", "quantize: ranges: 'input_1' is quantized with 'dynamic: true' and takes no range"),
    ):
        with pytest.raises(PolicyError, match=said):
            do(capture(net), Quantize(rules=[rule], ranges={name: (0.0, 1.0)}))


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.ConvTranspose2d])
def test_tokens_of_images(kind, do):
    rule = {"input": {"bits": 8, "dynamic": True, "per": "token"}}
    said = (
        r"quantize rule 1: input of '1': the last axis of what enters a conv\w+ is no features, so it has no tokens; "
        "write 'per: tensor' there"
    )
    with pytest.raises(PolicyError, match=said):
        do(capture(nn.Sequential(nn.Linear(2, 2), kind(2, 2, 1))), quantize(rule))


def test_rules_that_mean_nothing_together(do):
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tokens = {"input": {"bits": 8, "dynamic": True, "per": "token"}}
    for later, said in (
        ({"dynamic": False}, "quantize rule 2: input of '1': per token needs 'dynamic: true'"),
        ({"bits": "e4m3"}, "quantize rule 2: input of '1': dynamic is for whole numbers of bits, not for 'e4m3'"),
    ):
        with pytest.raises(PolicyError, match=said):
            do(capture(net), quantize(tokens, {"select": {"names": ["1"]}, "input": later}))


def test_a_computed_weight_is_not_skipped_silently(do):
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), nn.Linear(2, 2))
    with pytest.warns(UserWarning, match=r"^quantize rule 1: the weight of '_0' stays as it is: it is computed from"):
        gm = do(capture(net), quantize({"weight": {"bits": 8}, "input": {"bits": 8}}))
    assert {"1.weight_quantizer", "input_1_quantizer"} <= {name for name, _ in gm.named_modules()}
    said = r"quantize rule 1: the weight of '_0' \(linear\) is computed from a parameter, .*remove_parametrizations"
    with pytest.raises(PassError, match=said):
        do(capture(net), quantize({"select": {"names": ["_0"]}, "weight": {"bits": 8}}))
    do(capture(net), quantize({"input": {"bits": 8}}))
