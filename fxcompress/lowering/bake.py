"""Bake: turn a graph with quantizers into the form that is exported, every weight computed once and for all."""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxcompress.graph.edit import constant_value, get_tensor, is_constant, module_of, parameter_under
from fxcompress.lowering.clamps import absorb_clamp
from fxcompress.lowering.export_modules import Activation, Bias, Weight
from fxcompress.lowering.integer_calls import (
    IntegerCall,
    activations,
    feeds_float_layer,
    integer_calls,
    quantizer_under,
)
from fxcompress.lowering.stored import stored_weight
from fxcompress.nn import Quantizer


@torch.no_grad()
def bake(gm: fx.GraphModule, *, whole: bool = True) -> None:
    """Replace quantizers by modules that emit ONNX nodes, and chains on weights by their value; `gm` is changed.

    A layer runs in integers where its weight and its input have a quantizer, and a convolution's result too. `whole`
    says that `gm` is the model, not a part of it.
    """
    _take_off_disabled(gm)
    integer = integer_calls(gm)
    chains = [node for node in gm.graph.nodes if _ends_chain(gm, node)]
    quantized = activations(gm)
    in_float = {
        (node, user) for node in quantized for user in node.users if feeds_float_layer(gm, user, integer, whole=whole)
    }
    weights = _stored_weights(gm, [node for node in chains if quantizer_under(gm, node)], integer)
    for call, found in integer.items():
        if found.bias is not None:
            _insert_bias(gm, call, found, weights[found.weight].scale)
    for node in chains:
        if node in weights:
            name = _register(gm, str(parameter_under(gm, node)), weights[node])
            _split(gm, node, name, (), [user for user in node.users if _is_weight(node, user, integer)])
        elif node.users:  # a bias that became int32 has none left
            _replace_by_buffer(gm, node)
    for node, quantizer in quantized.items():
        activation = Activation(quantizer, *absorb_clamp(node, quantizer))
        name = str(node.target)
        if gm.get_submodule(name) is quantizer:
            gm.set_submodule(name, activation)
        else:  # the quantizer of a layer that is called twice
            name = _register(gm, name, activation)
        _split(gm, node, name, node.args, [user for user in node.users if (node, user) not in in_float])
    gm.graph.eliminate_dead_code()
    gm.recompile()


def _take_off_disabled(gm: fx.GraphModule) -> None:
    for node in list(gm.graph.nodes):
        module = module_of(gm, node)
        if isinstance(module, Quantizer) and not module.enabled:
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)


def _ends_chain(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether something computed from parameters enters the rest of the graph here."""
    return node.op != "get_attr" and is_constant(gm, node) and not all(is_constant(gm, user) for user in node.users)


def _is_weight(node: fx.Node, user: fx.Node, integer: dict[fx.Node, IntegerCall]) -> bool:
    return user in integer and integer[user].weight is node


def _stored_weights(
    gm: fx.GraphModule, nodes: list[fx.Node], integer: dict[fx.Node, IntegerCall]
) -> dict[fx.Node, Weight]:
    """Return the codes of quantized weights; tied weights share theirs, one weight folded in two ways does not."""
    alike: dict[Hashable, list[fx.Node]] = {}
    for node in nodes:
        alike.setdefault(_signature(gm, node), []).append(node)
    stored: dict[fx.Node, Weight] = {}
    for group in alike.values():
        quantizer = quantizer_under(gm, group[0])
        assert quantizer is not None
        calls = [call for call in integer.values() if call.weight in group]
        weight = stored_weight(constant_value(gm, group[0]), quantizer, calls)
        stored |= dict.fromkeys(group, weight)
    return stored


def _signature(gm: fx.GraphModule, value: Any) -> Hashable:
    """What a chain computes: equal for nodes that compute the same from the same tensors."""
    if not isinstance(value, fx.Node):
        return value
    if value.op == "get_attr":
        return id(get_tensor(gm, str(value.target)))
    module = module_of(gm, value)
    called = value.target if module is None else id(module)
    return called, *(_signature(gm, argument) for argument in value.args)


def _insert_bias(gm: fx.GraphModule, call: fx.Node, found: IntegerCall, weight_scale: Tensor) -> None:
    assert found.bias is not None
    bias = Bias(found.bias, found.input_scale * weight_scale, linear=found.linear)
    name = _register(gm, f"{call.name}.bias", bias)
    with gm.graph.inserting_before(call):
        call.update_arg(2, gm.graph.call_module(name, (call.args[0],)))


def _replace_by_buffer(gm: fx.GraphModule, node: fx.Node) -> None:
    name = _free_name(gm, node.name)
    gm.register_buffer(name, constant_value(gm, node))
    with gm.graph.inserting_before(node):
        node.replace_all_uses_with(gm.graph.get_attr(name))


def _split(gm: fx.GraphModule, node: fx.Node, name: str, args: tuple[Any, ...], integer: list[fx.Node]) -> None:
    """Replace `node` by calls of the module `name`: one for the users `integer`, one in float for the others."""
    for users, in_integers in ((integer, True), ([user for user in node.users if user not in integer], False)):
        if users:
            with gm.graph.inserting_before(node):
                new = gm.graph.call_module(name, (*args, in_integers))
            for user in users:
                user.replace_input_with(node, new)


def _register(gm: fx.GraphModule, name: str, module: nn.Module) -> str:
    """Register a module under `name` with underscores, and return the name; a module that is there keeps its own."""
    known = {id(other): path for path, other in gm.named_modules()}
    if id(module) not in known:
        known[id(module)] = _free_name(gm, name.replace(".", "_"))
        gm.add_module(known[id(module)], module)
    return known[id(module)]


def _free_name(gm: fx.GraphModule, name: str) -> str:
    while hasattr(gm, name):
        name += "_"
    return name
