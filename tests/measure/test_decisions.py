"""decisions: which open Choices are one decision, over which options, and what these say."""

import pytest
import torch
from torch import nn

from fxcompress.errors import PolicyError
from fxcompress.graph import capture
from fxcompress.measure.decisions import decisions
from fxcompress.passes import apply
from fxcompress.policies import Prune, Quantize


def opened(model, *rules, sparsity=None):
    gm = capture(model)
    apply(Quantize(rules=rules), gm)
    if sparsity:
        apply(Prune(rules=({"sparsity": sparsity},)), gm)
    return decisions(gm)


class Net(nn.Module):
    """Two layers share an input; an add joins them; a third follows."""

    def __init__(self, tied=False):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
        if tied:
            self.b.weight = self.a.weight

    def forward(self, x):
        return self.c(torch.relu(self.a(x) + self.b(x)))


WEIGHTS = {"weight": {"bits": (4, 8)}}
INPUTS = {"input": {"bits": (4, 8)}}
ADD = {"select": {"ops": ["add"]}, "input": {"bits": (4, 8)}}


def layers_of(found):
    return [decision.layers for decision in found]


def test_weights_are_decided_apart():
    found = opened(Net(), WEIGHTS)
    assert [decision.name for decision in found] == ["a.weight", "b.weight", "c.weight"]
    assert layers_of(found) == [("a",), ("b",), ("c",)]
    assert [option.label for option in found[0].options] == ["int4", "int8"]
    assert found[0].options[0].settings == {"a": {"weight.bits": 4}}
    assert found[0].chains == (("a.weight_quantizer_choice",),)


def test_a_tied_weight_is_one_decision():
    found = opened(Net(tied=True), WEIGHTS)
    assert layers_of(found) == [("a", "b"), ("c",)]
    assert found[0].options[1].settings == {"a": {"weight.bits": 8}, "b": {"weight.bits": 8}}
    assert found[0].chains == (("a.weight_quantizer_choice",),)


def test_bits_and_sparsity_of_a_weight_are_decided_over_their_product():
    (first, *_) = opened(Net(), WEIGHTS, sparsity=(0.0, 0.25, 0.5))
    assert [option.label for option in first.options] == [
        f"{share}, int{bits}" for share in ("dense", "25% sparse", "50% sparse") for bits in (4, 8)
    ]
    assert first.options[3].settings == {"a": {"sparsity": 0.25, "weight.bits": 8}}
    assert first.chains == (("a.weight_mask_choice", "a.weight_quantizer_choice"),)


def test_a_shared_input_is_one_decision():
    found = opened(Net(), INPUTS)
    assert layers_of(found) == [("a", "b"), ("c",)]
    assert found[0].options[0].settings == {"a": {"input.bits": 4}, "b": {"input.bits": 4}}


def test_weights_and_their_shared_input_are_one_decision():
    found = opened(Net(), WEIGHTS | INPUTS)
    assert layers_of(found) == [("a", "b"), ("c",)]
    assert [len(decision.options) for decision in found] == [2**3, 2**2]
    option = found[0].options[1]
    assert option.picks == {
        "x_quantizer_choice": "uint4",
        "a.weight_quantizer_choice": "int4",
        "b.weight_quantizer_choice": "int8",
    }
    assert option.settings == {"a": {"weight.bits": 4, "input.bits": 4}, "b": {"weight.bits": 8, "input.bits": 4}}


def test_the_inputs_of_an_add_are_equal():
    (found,) = opened(Net(), ADD)
    assert found.layers == ("add",)
    assert [option.label for option in found.options] == ["uint4", "uint8"]
    assert found.options[1].picks == {"a_quantizer_choice": "uint8", "b_quantizer_choice": "uint8"}
    assert found.chains == (("a_quantizer_choice",), ("b_quantizer_choice",))


def test_coupling_passes_on():
    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            y = self.a(x)
            return self.b(y) + y  # the add's inputs are equal, and b shares one of them

    (first, second) = opened(Chain(), INPUTS, ADD)
    assert layers_of([first, second]) == [("a",), ("b", "add")]
    assert len(second.options) == 2


def test_nothing_open():
    assert opened(Net(), {"weight": {"bits": 4}}) == []


def test_too_many_options():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(12))

        def forward(self, x):
            return sum(layer(x) for layer in self.layers)

    message = (
        r"layers.0, layers.1, .*layers.11 share open tensors and must be decided together, which gives 8,192 options "
        r"\(at most 4,096\); write one value for input.bits there"
    )
    with pytest.raises(PolicyError, match=message):
        opened(Wide(), WEIGHTS | INPUTS)
    assert len(opened(Wide(), WEIGHTS)) == 12
