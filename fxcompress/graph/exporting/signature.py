"""The signature of an exported graph: a placeholder for each parameter of forward, opened into its tensors."""

import copy
import dataclasses
import inspect
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxcompress.errors import CaptureError
from fxcompress.graph.exporting.nesting import Place, entries, is_constant, like
from fxcompress.graph.inputs import Arguments, expect

_STARS: Mapping[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


@dataclasses.dataclass
class Inputs:
    """The tensors of a call, the node and the name of each, and the call with a Place for each tensor."""

    tensors: list[Tensor] = dataclasses.field(default_factory=list)
    nodes: list[fx.Node] = dataclasses.field(default_factory=list)
    names: list[str] = dataclasses.field(default_factory=list)
    call: Arguments = dataclasses.field(default_factory=Arguments)


@fx.has_side_effect
def expect_entries(value: Any, captured: Sequence[Any], name: str) -> None:
    """Refuse a call whose dict has other keys, or whose list another length, than the captured one."""
    found = list(value) if isinstance(value, Mapping) else list(range(len(value)))
    if set(found) != set(captured):
        raise CaptureError(
            f"the model was captured with {list(captured)} in {name}, and is called with {found}; "
            "state what you need in example_inputs"
        )


@fx.has_side_effect
def expect_same(value: Any, other: Any, name: str, other_name: str) -> None:
    """Refuse a call with two tensors where the captured one gave the same tensor twice."""
    if value is not other:
        raise CaptureError(
            f"the model was captured with one tensor as {name} and {other_name}, and is called with two; let "
            "example_inputs do what needs both kinds of calls"
        )


def open_inputs(graph: fx.Graph, model: nn.Module, arguments: Arguments) -> Inputs:
    """Write placeholders for the signature of `model` into a graph, and open the arguments of a call into tensors.

    Constants choose a path through the model: the graph refuses a call with others. So does a tensor that is given
    twice: it stays one.
    Raises CaptureError for an argument that is neither a tensor, a constant nor a container of them.
    """
    call = bind(model, arguments)
    full = copy.copy(call)
    full.arguments = dict(call.arguments)
    full.apply_defaults()
    values = list(full.arguments.items())[1:]
    nodes = _placeholders(graph, call.signature, values, set(call.arguments))
    inputs = Inputs()
    for name, value in values:
        if name in nodes:
            opened = _open(graph, nodes[name], value, name, inputs)
            if name in call.arguments:
                call.arguments[name] = opened
    inputs.call = Arguments(call.args[1:], call.kwargs)
    return inputs


def bind(model: nn.Module, arguments: Arguments) -> inspect.BoundArguments:
    """Return a call of a model by the names of its forward's parameters."""
    forward = type(model).forward
    try:
        return inspect.signature(forward).bind(model, *arguments.args, **arguments.kwargs)
    except TypeError:  # a decorator shows another signature than the one that is called
        try:
            return inspect.signature(forward, follow_wrapped=False).bind(model, *arguments.args, **arguments.kwargs)
        except TypeError as error:
            raise CaptureError(f"{type(model).__name__} does not take the example inputs: {error}") from error


def _placeholders(
    graph: fx.Graph, signature: inspect.Signature, values: Sequence[tuple[str, Any]], given: set[str]
) -> dict[str, fx.Node]:
    """Write a placeholder for each parameter.

    An argument that is None by default, but was given, is required, as the captured path needs it; behind an optional
    argument Python takes none that is required (by keyword alone): that one gets a default.
    """
    nodes: dict[str, fx.Node] = {}
    optional = False
    for name, value in values:
        parameter = signature.parameters[name]
        default, stars = parameter.default, _STARS.get(parameter.kind, "")
        if not is_constant(default) and default is not parameter.empty and name not in given:
            continue  # an object that cannot be written into a graph, and that was not given
        stated = default is None and not is_constant(value)
        required = default is parameter.empty or stated or not is_constant(default)
        has_no_default = stars or (required and not optional)
        args = () if has_no_default else (None if required else default,)
        nodes[name] = graph.create_node("placeholder", stars + name, args, {}, name)
        optional = (optional or bool(args)) and not stars
    return nodes


def _open(graph: fx.Graph, node: fx.Node, value: Any, name: str, inputs: Inputs) -> Any:
    """Write the nodes that read the tensors in a value, and return the value with a Place for each of them."""
    if isinstance(value, Tensor):
        if value.layout is not torch.strided:
            raise CaptureError(f"{name} is a sparse tensor, which a graph cannot take; give {name}.to_dense()")
        again = next((index for index, other in enumerate(inputs.tensors) if value is other), None)
        if again is not None:  # the model's code may ask whether they are one
            graph.call_function(expect_same, (node, inputs.nodes[again], name, inputs.names[again]))
            return Place(again)
        inputs.tensors.append(value)
        inputs.nodes.append(node)
        inputs.names.append(name)
        return Place(len(inputs.tensors) - 1)
    parts = entries(value)
    if parts is None:
        if not is_constant(value):
            raise CaptureError(
                f"{name} is a {type(value).__name__}, which a graph cannot take; give tensors, numbers, texts, and "
                "tuples, lists, dicts and dataclasses of them"
            )
        graph.call_function(expect, (node, value, name))
        return value
    if all(part.read is operator.getitem for part in parts):
        graph.call_function(expect_entries, (node, tuple(part.key for part in parts), name))
    opened = []
    for part in parts:
        read = graph.call_function(part.read, (node, part.key))
        shown = f"{name}[{part.key!r}]" if part.read is operator.getitem else f"{name}.{part.key}"
        opened.append(_open(graph, read, part.value, shown, inputs))
    return like(value, parts, opened)
