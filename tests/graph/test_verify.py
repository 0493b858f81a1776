"""verify: what a broken graph is told."""

import pytest
import torch
from torch import nn

from fxcompress.errors import PassError
from fxcompress.graph import capture, verify
from fxcompress.graph.edit import insert
from fxcompress.nn import Choice, Mask, UniformQuantizer


@pytest.fixture
def gm():
    return capture(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))


def node(gm, name):
    return next(node for node in gm.graph.nodes if node.name == name)


def quantizer(bits=8):
    return UniformQuantizer(bits, symmetric=True)


def test_a_sound_graph(gm):
    insert(gm, node(gm, "_0_weight"), "0.weight_quantizer", quantizer(), [node(gm, "_0")])
    insert(gm, node(gm, "_0"), "_0_quantizer", quantizer(), [node(gm, "_1")])
    verify(gm)


@pytest.mark.parametrize(
    ("module", "shown"),
    [
        (quantizer(), "Quantizer(int8, per tensor)"),
        (Mask(torch.tensor([True, False])), "Mask(50% zeros)"),
        (Choice({"a": quantizer(), "b": quantizer()}, {"a": {}, "b": {}}), "Choice(a | b)"),
    ],
)
def test_a_module_that_no_node_calls(module, shown, gm, refused):
    gm.add_submodule("0.dangling", module)
    with refused(PassError, f"module '0.dangling' ({shown}) is in the model, but no node calls it"):
        verify(gm)


def test_what_is_inside_a_choice_is_called_by_it(gm):
    choice = Choice({"a": quantizer(), "b": nn.Sequential(quantizer())}, {"a": {}, "b": {}})
    insert(gm, node(gm, "_0_weight"), "0.weight_choice", choice, [node(gm, "_0")])
    verify(gm)


def test_two_quantizers_on_one_tensor(gm, refused):
    first = insert(gm, node(gm, "_0_weight"), "0.weight_quantizer", quantizer(4), [node(gm, "_0")])
    mask = insert(gm, first, "0.weight_mask", Mask(torch.ones(2, 2)), [node(gm, "_0")])
    insert(gm, mask, "another", quantizer(), [node(gm, "_0")])
    with refused(PassError, "tensor '_0_weight' has two quantizers, '0.weight_quantizer' and 'another'"):
        verify(gm)


def test_two_quantizers_for_two_readers(refused):
    class Reads(nn.Module):
        def forward(self, x):
            return x + 1, x * 2

    gm = capture(Reads())
    insert(gm, node(gm, "x"), "a", quantizer(), [node(gm, "add")])
    insert(gm, node(gm, "x"), "b", quantizer(), [node(gm, "mul")])
    with refused(PassError, "tensor 'x' has two quantizers, 'b' and 'a'"):
        verify(gm)


def test_a_target_that_is_gone(gm):
    insert(gm, node(gm, "_0"), "_0_quantizer", quantizer(), [node(gm, "_1")])
    gm.delete_submodule("_0_quantizer")
    with pytest.raises(PassError, match=r"^the graph is not well-formed: .*_0_quantizer"):
        verify(gm)


def test_a_parameter_that_is_gone(gm):
    del gm.get_submodule("0").weight
    with pytest.raises(PassError, match=r"^the graph is not well-formed: .*weight"):
        verify(gm)


def test_a_use_before_its_definition(gm):
    node(gm, "_0").replace_input_with(node(gm, "input_1"), node(gm, "_1"))
    with pytest.raises(PassError, match=r"^the graph is not well-formed: .*before it has been defined"):
        verify(gm)
