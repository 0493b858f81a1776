"""What the boxes of a drawing say: name, kind, shape and work of an operator, and the parameters that it reads."""

from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from fxcompress.graph.coverage import coverage
from fxcompress.graph.edit import get_tensor, inserted, is_constant, module_of
from fxcompress.graph.layers import Layer, layers
from fxcompress.graph.operators.calls import operator_of
from fxcompress.graph.shapes import Shapes, macs
from fxcompress.nn import Choice
from fxcompress.reporting.wording import shape_text

_FEW = 2  # parameters whose shapes are told; of more only how many entries they have


class Line(NamedTuple):
    """A line of a box; `style` is the class of the inserted module that it stands for, "" for plain text."""

    text: str
    style: str = ""


class Contents(NamedTuple):
    """The lines of a box, the first of them its title; `layer` is the name of the layer that is called, or ""."""

    lines: list[Line]
    style: str
    layer: str = ""


def contents(gm: fx.GraphModule, known: Shapes | None) -> dict[fx.Node, Contents]:
    """Return the box of each node that is drawn: all but parameters, what computes on these alone, and guards.

    An input that nothing else reads has no box either.
    """
    called = {call: layer for layer in layers(gm) for call in layer.calls}
    unseen = {one.name for one in coverage(gm).unseen}
    return {
        node: _box(gm, node, called.get(node), known or {}, unseen) for node in gm.graph.nodes if _is_drawn(gm, node)
    }


def _is_drawn(gm: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "placeholder":
        return not all(map(_is_guard, node.users))
    return not _is_guard(node) and not is_constant(gm, node)


def _is_guard(node: fx.Node) -> bool:
    """Return whether a node checks a call and computes nothing."""
    return node.op == "call_function" and node.is_impure(impure_random=False)


def _box(gm: fx.GraphModule, node: fx.Node, layer: Layer | None, known: Shapes, unseen: set[str]) -> Contents:
    module = module_of(gm, node)
    if module is not None and inserted(gm, node):
        return Contents([Line(repr(module))], module._get_name())
    work = macs(gm, replace(layer, calls=(node,)), known) if layer is not None and layer.weight is not None else 0
    shape = shape_text(known[node][0]) if node in known else ""
    facts = " · ".join(filter(None, (_kind(node, module), shape, f"{work:,} MACs" if work else "")))
    title = node.name if node.op in ("call_function", "call_method") else str(node.target)
    lines = [Line(title if layer is None else layer.name), *([Line(facts)] if facts else [])]
    lines += _parameters(gm, node, module)
    style = "end" if node.op in ("placeholder", "output") else "operator" if layer is None else "layer"
    if module is not None:
        style = "Choice" if isinstance(module, Choice) else "unseen" if title in unseen else style
    return Contents(lines, style, "" if layer is None else layer.name)


def _kind(node: fx.Node, module: nn.Module | None) -> str:
    row, target = operator_of(node), node.target
    if row is not None:
        return row.kind
    if module is not None:
        return repr(module) if isinstance(module, Choice) else module._get_name()
    return target.__name__ if callable(target) else {"placeholder": "input", "output": ""}.get(node.op, target)


def _parameters(gm: fx.GraphModule, node: fx.Node, module: nn.Module | None) -> list[Line]:
    """Return a line for the parameters and buffers that a node reads, and one for each edit on them."""
    tensors: dict[str, Any] = {} if module is None else dict(module.named_parameters())
    edits: list[Line] = []
    for edge in node.all_input_nodes:
        if is_constant(gm, edge):
            name, on_it = _followed(edge)
            leaf = name.rpartition(".")[2]
            if name:
                tensors[leaf] = get_tensor(gm, name)
            edits += [_edit(gm, one, leaf) for one in on_it]
    sizes = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor) and tensor.numel()}
    if len(sizes) > _FEW:
        read = f"{sum(tensor.numel() for tensor in sizes.values()):,} parameters in {len(sizes)} tensors"
    else:
        read = ", ".join(f"{name} {shape_text(tensor.shape)}" for name, tensor in sizes.items())
    return [*([Line(read)] if read else []), *edits]


def _followed(edge: Any) -> tuple[str, list[fx.Node]]:
    """Return the name of the parameter from which an edge comes, "" for none, and what is computed on the way."""
    way: list[fx.Node] = []
    while isinstance(edge, fx.Node) and edge.op != "get_attr":
        way.insert(0, edge)
        edge = edge.args[0]
    return str(edge.target) if isinstance(edge, fx.Node) else "", way


def _edit(gm: fx.GraphModule, node: fx.Node, name: str) -> Line:
    module = module_of(gm, node)
    text = _kind(node, None) if module is None else repr(module)
    return Line(f"{name}: {text}" if name else text, "" if module is None else module._get_name())
