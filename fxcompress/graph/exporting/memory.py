"""Memory: in-place operators of an exported program become new values for all that share the memory."""

import operator
from collections.abc import Callable, Container
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress.errors import CaptureError
from fxcompress.graph.exporting.calls import line_of, operator_name

aten = torch.ops.aten


def is_write(node: fx.Node) -> bool:
    """Return whether a node writes into the memory of its first argument."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.arguments:
        return False
    changed = node.target._schema.arguments[0].alias_info
    return changed is not None and changed.is_write


def without_write(node: fx.Node) -> Any:
    """Return the operator that computes in a new tensor what an operator writes.

    Raises CaptureError where torch has none.
    """
    name = node.target.overloadpacket.__name__  # type: ignore[union-attr]
    name = name.replace("__i", "__", 1) if name.startswith("__i") else name.removesuffix("_")
    arguments = len(node.target._schema.arguments)  # type: ignore[union-attr]
    for overload in (node.target._overloadname, "default"):  # type: ignore[union-attr]
        found = getattr(getattr(aten, name, None), overload, None)
        if found is not None and len(found._schema.arguments) == arguments:
            return found
    place, line = line_of(node)
    where = f" at {place} ({line})" if place else ""
    message = f"forward calls {operator_name(node)}{where}, which torch has in place alone; compute it out of place"
    raise CaptureError(message, place=place, line=line)


class Memory:
    """What the nodes of an exported program are in the graph at the moment.

    A tensor and its views are one piece of memory, whose base is the tensor. A write gives the base a new value;
    views are then computed again, with `emit`, when they are next read. `state` are parameters, buffers and
    constants: what writes into these stays in place.
    """

    def __init__(self, emit: Callable[[fx.Node], Any], state: Container[fx.Node]) -> None:
        self._emit, self._state = emit, state
        self._values: dict[fx.Node, Any] = {}
        self._same: dict[fx.Node, fx.Node] = {}
        self._viewed: dict[fx.Node, fx.Node] = {}  # the tensor that a view is of
        self._writes: dict[fx.Node, int] = {}  # how often a base was written into
        self._seen: dict[fx.Node, int] = {}  # how many of those writes a value has in it

    def origin(self, node: fx.Node) -> fx.Node:
        """Return the node that computes what a node is only another name of."""
        while node in self._same:
            node = self._same[node]
        return node

    def base(self, node: fx.Node) -> fx.Node:
        """Return the tensor whose memory a node shares."""
        node = self.origin(node)
        while node in self._viewed:
            node = self.origin(self._viewed[node])
        return node

    def is_state(self, node: Any) -> bool:
        """Return whether a node shares the memory of a parameter, a buffer or a constant."""
        return self.base(node) in self._state

    def name(self, node: fx.Node, other: fx.Node) -> None:
        """Make a node another name of `other`."""
        self._same[node] = other

    def hold(self, node: fx.Node, value: Any) -> None:
        """Note what a node is in the graph."""
        source = _viewed(node)
        if source is not None:
            self._viewed[node] = source
        self._set(node, value)

    def value(self, node: fx.Node) -> Any:
        """Return what a node is in the graph, after all writes into its memory."""
        node = self.origin(node)
        if self._seen[node] != self._writes.get(self.base(node), 0):
            self._set(node, self._emit(node))
        return self._values[node]

    def write(self, node: fx.Node, value: Any) -> None:
        """Note that a node writes `value` into its first argument, and so into all that this is a view of."""
        target = _first(node)
        self.name(node, target)
        one, new = self.origin(target), {}
        new[one] = value
        while one in self._viewed:
            source = self.origin(self._viewed[one])
            value = new[source] = self._scattered(one, self.value(source), value)
            one = source
        self._writes[one] = self._writes.get(one, 0) + 1
        for changed, value in new.items():
            self._set(changed, value)

    def _set(self, node: fx.Node, value: Any) -> None:
        self._values[node] = value
        self._seen[node] = self._writes.get(self.base(node), 0)

    def _scattered(self, view: fx.Node, source: fx.Node, value: fx.Node) -> fx.Node:
        """Write into the graph the tensor `source` with its view replaced by `value`."""
        graph = value.graph
        args: Any = fx.map_arg(view.args[1:], self.value)
        is_complex = view.meta["val"].is_complex()  # of which torch takes no gradient through these operators
        if view.target is aten.slice.Tensor and not is_complex:
            return graph.call_function(aten.slice_scatter.default, (source, value, *args))
        if view.target is aten.select.int and not is_complex:
            return graph.call_function(aten.select_scatter.default, (source, value, *args))
        if view.target in (aten.transpose.int, aten.t.default):
            return graph.call_function(torch.transpose, (value, *(args or (0, 1))))
        if view.target is aten.permute.default:
            inverse = sorted(range(len(args[0])), key=lambda axis: args[0][axis] % len(args[0]))
            return graph.call_function(torch.permute, (value, tuple(inverse)))
        if view.target in _RESHAPING:
            return graph.call_method("reshape_as", (value, source))
        if view.target in _SAME:
            return value
        place, line = line_of(view)
        maker = operator_name(_first(view) if view.target is operator.getitem else view)
        message = f"forward changes in place what {maker} returns at {place} ({line}); compute it out of place"
        raise CaptureError(message, place=place, line=line)


_RESHAPING = {
    *(aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int, aten.view_as.default),
    *(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten._unsafe_view.default),
}
_SAME = {
    *(aten.alias.default, aten.detach.default, aten.contiguous.default, aten.to.dtype, aten.to.device),
    aten.to.dtype_layout,
}


def _first(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def _viewed(node: fx.Node) -> fx.Node | None:
    """Return the tensor that a node is a view of, None for a tensor of its own."""
    if not node.args or not isinstance(node.args[0], fx.Node) or not _may_be_view(node):
        return None
    source = _first(node)
    own, other = _memory(node), _memory(source)
    return source if own is None or other is None or own == other else None


def _may_be_view(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return _may_be_view(_first(node))
    returned = node.target._schema.returns if isinstance(node.target, torch._ops.OpOverload) else ()
    return any(one.alias_info is not None for one in returned)


def _memory(node: fx.Node) -> int | None:
    value = node.meta.get("val")
    first = value[0] if isinstance(value, tuple | list) and value else value
    return first.untyped_storage()._cdata if isinstance(first, Tensor) else None
