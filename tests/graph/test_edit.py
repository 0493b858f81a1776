"""The editing primitive: modules put on edges, found again and taken off."""

import copy

import pytest
import torch
from torch import nn

from fxcompress.errors import PassError
from fxcompress.graph import capture, layers, verify
from fxcompress.graph.edit import (
    constant_value,
    get_tensor,
    has_module,
    insert,
    inserted,
    is_constant,
    module_of,
    parameter_under,
    remove,
    tensor_under,
)
from fxcompress.graph.operators.calls import argument_node
from fxcompress.nn import Choice, Mask, UniformQuantizer
from fxcompress.nn.functional import folded_bias


@pytest.fixture
def gm():
    return capture(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)))


def named(gm, name):
    return next(node for node in gm.graph.nodes if node.name == name)


def quantizer():
    return UniformQuantizer(8, symmetric=True)


def test_a_module_on_an_edge(gm, reads):
    weight, layer = named(gm, "_0_weight"), named(gm, "_0")
    mask = insert(gm, weight, "0.weight_mask", Mask(torch.eye(2)), [layer])
    insert(gm, mask, "0.weight_quantizer", quantizer(), [layer])
    verify(gm)
    reads(gm, """
        input_1: input
        _0_weight = 0.weight
        _0_weight_mask = Mask(50% zeros)(_0_weight)
        _0_weight_quantizer = Quantizer(int8, per tensor)(_0_weight_mask)
        _0 = linear(input_1, _0_weight_quantizer, 0.bias)
        _1 = relu(_0)
        _2 = linear(_1, 2.weight, 2.bias)
        return _2
        """)  # fmt: skip
    end = argument_node(layer, 1)
    assert inserted(gm, end)
    assert not inserted(gm, layer)
    assert tensor_under(gm, end) is weight
    assert parameter_under(gm, end) == "0.weight"
    assert [found.weight for found in layers(gm)] == ["0.weight", "2.weight"]
    assert list(gm.state_dict())[:2] == ["0.weight", "0.bias"]


def test_taking_it_off_again(gm):
    before = str(gm.graph)
    node = insert(gm, named(gm, "_1"), "_1_quantizer", quantizer(), [named(gm, "_2")])
    again = insert(gm, named(gm, "_0"), "_1_quantizer", gm.get_submodule("_1_quantizer"), [named(gm, "_1")])
    remove(gm, node)
    assert has_module(gm, "_1_quantizer")  # still called once
    remove(gm, again)
    assert not has_module(gm, "_1_quantizer")
    assert str(gm.graph) == before


def test_only_the_named_users_see_it(gm):
    relu = named(gm, "_1")
    insert(gm, relu, "_1_quantizer", quantizer(), [])
    assert [user.name for user in relu.users] == ["_2", "_1_quantizer"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("0", "'0' exists already in the graph; two steps cannot both put a module there"),
        ("0.weight", "Quantizer '0.weight' cannot be put there: the model has that name already"),
        ("training", "Quantizer 'training' cannot be put there: the model has that name already"),
        ("0.bias.quantizer", "Quantizer '0.bias.quantizer' cannot be put there: '0.bias' is not a module"),
    ],
)
def test_names_that_are_taken(gm, name, said, refused):
    with refused(PassError, said):
        insert(gm, named(gm, "_1"), name, quantizer(), [])


def test_values_that_depend_on_parameters_alone(gm):
    weight, layer = named(gm, "_0_weight"), named(gm, "_0")
    keep = torch.tensor([[1, 0], [0, 1]])
    mask = insert(gm, weight, "0.weight_mask", Mask(keep), [layer])
    ones = torch.ones(2)
    with gm.graph.inserting_before(layer):
        folded = gm.graph.call_function(folded_bias, (named(gm, "_0_bias"), None, None, ones, ones, 0.0))
    assert is_constant(gm, mask)
    assert is_constant(gm, folded)
    assert is_constant(gm, 3.0)
    assert not is_constant(gm, layer)
    torch.testing.assert_close(constant_value(gm, mask), gm.get_parameter("0.weight").detach() * keep)
    torch.testing.assert_close(constant_value(gm, folded), gm.get_parameter("0.bias").detach() - 1)
    assert constant_value(gm, 3.0) == 3.0
    assert parameter_under(gm, folded) == "0.bias"
    assert parameter_under(gm, layer) is None
    assert get_tensor(gm, "0.bias") is gm.get_parameter("0.bias")
    assert module_of(gm, mask) is gm.get_submodule("0.weight_mask")
    assert module_of(gm, layer) is None


def test_a_choice_of_whole_operators_is_not_on_an_edge(gm):
    relu = named(gm, "_1")
    options = {"a": nn.Identity(), "b": nn.Identity()}
    on_edge = insert(gm, relu, "_1_choice", Choice(options, {"a": {}, "b": {}}), [])
    assert inserted(gm, on_edge)
    on_edge.args = (relu, named(gm, "_0_weight"))
    assert not inserted(gm, on_edge)


def test_one_module_on_a_tied_weight(reads):
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    gm, shared = capture(model), quantizer()
    shared.set_range(torch.tensor(-1.0), torch.tensor(1.0))
    for name in ("_0_weight", "_1_weight"):
        insert(gm, named(gm, name), "0.weight_quantizer", shared, list(named(gm, name).users))
    gm.recompile()
    verify(gm)
    reads(
        gm,
        """
        input_1: input
        _0_weight = 0.weight
        _0_weight_quantizer = Quantizer(int8, per tensor)(_0_weight)
        _0 = linear(input_1, _0_weight_quantizer, None)
        _1_weight = 1.weight
        _0_weight_quantizer_1 = Quantizer(int8, per tensor)(_1_weight)
        _1 = linear(_0, _0_weight_quantizer_1, None)
        return _1
        """,
    )
    x, weight = torch.randn(3, 2), shared(model[0].weight)
    torch.testing.assert_close(gm(x), x @ weight.T @ weight.T)
    torch.testing.assert_close(copy.deepcopy(gm)(x), gm(x))
