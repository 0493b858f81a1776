"""Lifting: the operators of an exported program become the graph that tracing the model would give."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from fxcompress.errors import CaptureError
from fxcompress.graph.exporting.calls import Calls, line_of, operator_name, operators, repeats_a_guard
from fxcompress.graph.exporting.follow import Following
from fxcompress.graph.exporting.indexing import index, is_index
from fxcompress.graph.exporting.memory import Memory, is_write, without_write
from fxcompress.graph.exporting.mode_dependent import MODE_DEPENDENT
from fxcompress.graph.exporting.placement import Placement, placement_node
from fxcompress.graph.exporting.state import State
from fxcompress.graph.operators.calls import normalize_aten_call
from fxcompress.graph.traced import Traced

aten = torch.ops.aten
_METHODS = {
    aten.sym_size.int: "size",
    aten.sym_stride.int: "stride",
    aten.sym_numel.default: "numel",
    aten.detach.default: "detach",
    aten.detach_.default: "detach",
}
_THE_SAME = (aten.lift_fresh_copy.default, aten.alias.default)
_NUMBERS = (int, float, torch.SymInt, torch.SymFloat, torch.SymBool)


class Lifter:
    """Writes the nodes of an exported program into a graph, with the parts of the model in their places.

    `placed` holds the arguments of nodes in which a Placement stands for the model's device or dtype.
    """

    def __init__(
        self,
        traced: Traced,
        model: nn.Module,
        program: ExportedProgram,
        following: Following,
        placed: Mapping[fx.Node, Any],
    ) -> None:
        self.traced, self.model, self.following = traced, model, following
        nodes = list(operators(program.graph_module))
        self.calls, self.followed = Calls(model, nodes), following.followed(nodes)
        self._program, self._placed = program, placed
        self._state = State(model, program)
        self._memory = Memory(self._emit, self._state)
        self._attributes: dict[str, fx.Node] = {}
        self._placements: dict[Placement, fx.Node] = {}
        self._regions: dict[fx.Node, tuple[Sequence[Any], bool]] = {}  # results, and whether they have a gradient

    def lift(self, inputs: Sequence[fx.Node]) -> list[Any]:
        """Write all nodes, for inputs that are `inputs` in the graph; returns what the outputs are there."""
        placeholders = [node for node in self._program.graph.find_nodes(op="placeholder") if node not in self._state]
        for node, given in zip(placeholders, inputs, strict=True):
            self._memory.hold(node, given)
        outputs = self._run(self._program.graph_module)
        return [self.value(output) if isinstance(output, fx.Node) else output for output in outputs]

    def assign(self, buffers: Sequence[str], values: Sequence[fx.Node]) -> None:
        """Write the values that the model assigns to its buffers, which torch.export forgets."""
        for name, value in zip(buffers, values, strict=True):
            self.traced.graph.call_method("copy_", (self.attribute(name), value))

    def value(self, node: fx.Node, scope: str = "") -> Any:
        """Return what a node of the program is in the graph, for a reader in the module `scope`."""
        node = self._memory.origin(node)
        return self.attribute(self._state.name_in(scope, node)) if node in self._state else self._memory.value(node)

    def attribute(self, name: str) -> fx.Node:
        """Return the node of a parameter, a buffer or a constant of the model."""
        if name not in self._attributes:
            self._attributes[name] = self.traced.graph.get_attr(name)
        return self._attributes[name]

    def create(self, node: fx.Node, op: str, target: Any, args: Any = (), kwargs: Any = None) -> fx.Node:
        """Write a node of the graph that computes what the program's `node` does."""
        new = self.traced.graph.create_node(op, target, args, kwargs or {})
        self.traced.scopes[new] = self.calls.scope(node)
        if (name := self.calls.result(node)) is not None:
            self.traced.names[new] = name
        if isinstance(node.meta.get("val"), _NUMBERS):
            self.traced.plain.add(new)
        return new

    def create_made(self, node: fx.Node, module: nn.Module, *args: Any) -> fx.Node:
        """Write a call of a module that the model does not have."""
        new = self.create(node, "call_function", type(module), args)
        self.traced.call_made(new, module.train(self.model.training))
        return new

    def _run(self, gm: fx.GraphModule) -> Sequence[Any]:
        """Write the nodes of a graph whose placeholders are known; returns the outputs."""
        for node in gm.graph.nodes:
            if node.op == "call_function" and not repeats_a_guard(node):
                self._write(gm, node)
        outputs: Any = gm.graph.output_node().args[0]
        return outputs

    def _write(self, gm: fx.GraphModule, node: fx.Node) -> None:
        call = self.calls.kept(node)
        if call:
            if node is call[-1]:
                self._call_module(node, call)
        elif isinstance(node.target, torch._ops.HigherOrderOperator):
            self._open_region(gm, node)
        elif node.args and node.args[0] in self._regions:
            self._leave_region(node, *node.args)
        elif is_write(node) and not self._memory.is_state(node.args[0]):
            self._memory.write(node, self._emit(node))
        else:
            self._memory.hold(node, self._emit(node))

    def _call_module(self, node: fx.Node, call: Sequence[fx.Node]) -> None:
        """Write the call of a module that stays a module; it has one input."""
        path = self.calls.scope(node)
        module = self.model.get_submodule(path)
        read = (self._memory.origin(one) for inner in call for one in inner.all_input_nodes if one not in call)
        source = next(one for one in read if not self._state.is_of(module, one))
        new = self.create(node, "call_module", path, (self.value(source),))
        if is_write(node):
            module.inplace = False  # type: ignore[assignment]
            self._memory.write(node, new)
        else:
            self._memory.hold(node, new)

    def _open_region(self, gm: fx.GraphModule, node: fx.Node) -> None:
        """Write the nodes of a part of the program that the model computes under another setting of torch."""
        name, args = operator_name(node), list[Any](node.args)
        has_gradient = name != "wrap_with_set_grad_enabled" or args[0]
        if (name == "wrap_with_autocast" and args[2] is not False) or name not in _REGIONS:
            parts = [getattr(gm, str(arg.target), None) for arg in args if isinstance(arg, fx.Node)]
            inner = [one for part in parts if isinstance(part, fx.GraphModule) for one in operators(part)]
            raise _refusal(name.removeprefix("wrap_with_"), [node, *inner])
        region, *given = args[_REGIONS[name] :]
        inner = getattr(gm, region.target)
        for placeholder, value in zip(inner.graph.find_nodes(op="placeholder"), given, strict=True):
            if isinstance(value, fx.Node):
                self._memory.name(placeholder, value)
            else:
                self._memory.hold(placeholder, value)
        self._regions[node] = (self._run(inner), has_gradient)

    def _leave_region(self, node: fx.Node, region: Any, position: Any) -> None:
        results, has_gradient = self._regions[region]
        result = results[position]
        if has_gradient or not isinstance(node.meta["val"], Tensor):
            self._memory.name(node, result)
        else:
            value = self.value(result, self.calls.scope(result))
            detached = self.traced.graph.call_method("detach", (value,))
            self.traced.scopes[detached] = self.calls.scope(result)
            self._memory.hold(node, detached)

    def _emit(self, node: fx.Node) -> Any:
        """Write one node, and return what it is in the graph."""
        scope, name = self.calls.scope(node), operator_name(node)
        if is_index(node):
            source, key = index(node, self.value)
            value = self.value(source, scope)
            return value if key == () else self.create(node, "call_function", operator.getitem, (value, key))
        given = self._placed.get(node, (node.args, node.kwargs))
        args, kwargs = fx.node.map_aggregate(given, lambda one: self._argument(one, scope))
        if name in MODE_DEPENDENT:
            return MODE_DEPENDENT[name](self, node, args, kwargs)
        if node.target in _THE_SAME or _is_detached_constant(node):
            return args[0]
        if node.target in _METHODS:
            return self.create(node, "call_method", _METHODS[node.target], args, kwargs)
        if is_write(node):
            return self._emit_write(node, args, kwargs)
        if node.target is aten.embedding.default and (len(args) < 3 or args[2] == -1):
            args = (*args[:2], None, *args[3:])  # what torch.nn.functional calls no padding
        new = self.create(node, "call_function", node.target, args, kwargs)
        if isinstance(node.target, torch._ops.OpOverload):
            normalize_aten_call(new, name)
        return new

    def _argument(self, argument: Any, scope: str) -> Any:
        if isinstance(argument, Placement):
            return placement_node(self.traced, self.attribute, argument, self._placements)
        return self.value(argument, scope) if isinstance(argument, fx.Node) else argument

    def _emit_write(self, node: fx.Node, args: Any, kwargs: Any) -> fx.Node:
        """Write an in-place operator: as it is where it changes state, else the one that computes a new tensor."""
        name = operator_name(node)
        changed, *others = (
            one.meta["val"] for one in node.all_input_nodes if isinstance(one.meta.get("val"), Tensor)
        )
        if self._memory.is_state(node.args[0]):
            op, target = ("call_method", name) if hasattr(Tensor, name) else ("call_function", node.target)
            return self.create(node, op, target, args, kwargs)
        if node.target is aten.copy_.default:
            new = args[1]
            if [*map(str, changed.shape)] != [*map(str, others[0].shape)]:
                new = self.create(node, "call_method", "expand_as", (new, args[0]))
        else:
            target = without_write(node)
            new = self.create(node, "call_function", target, args, kwargs)
            normalize_aten_call(new, target.overloadpacket.__name__)
        if all(torch.result_type(changed, other) == changed.dtype for other in others):
            return new
        return self.create(node, "call_method", "to", (new, changed.dtype))


def _is_detached_constant(node: fx.Node) -> bool:
    """Return whether a node is the second half of torch.tensor([1.0])."""
    source = node.args[0] if node.target is aten.detach_.default else None
    return isinstance(source, fx.Node) and source.target is aten.lift_fresh_copy.default


def _refusal(used: str, nodes: Sequence[fx.Node]) -> CaptureError:
    place, line = next(filter(any, map(line_of, nodes)), ("", ""))
    where = f" at {place} ({line})" if place else ""
    return CaptureError(f"forward uses torch.{used}{where}, which a graph cannot hold", place=place, line=line)


# Settings of torch under which a part of a program is computed, with the position of that part in the arguments.
_REGIONS = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4, "tag_activation_checkpoint": 0}
