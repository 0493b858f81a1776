"""Operators in a graph: which row of the operator table a node is, and its call in the row's one spelling."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from fxcompress.graph.operators.row import SAME_AS_KERNEL, Operator
from fxcompress.graph.operators.table import OPERATORS

KINDS = tuple(row.kind for row in OPERATORS if row.is_layer)
_BY_FUNCTION: dict[Any, Operator] = {row.functions[0]: row for row in OPERATORS}
_BY_SPELLING: dict[Any, Operator] = {function: row for row in OPERATORS for function in row.functions}
_BY_ATEN: dict[str, Operator] = {name: row for row in OPERATORS for name in row.aten or (row.kind,)}
# Arguments that the rows leave out, with the value that a call may state (`...` for any).
_NEUTRAL = {
    "inplace": False,
    "dtype": None,
    "return_indices": False,
    **dict.fromkeys(("_stacklevel", "cudnn_enable", "cudnn_enabled"), ...),
}
_ALIASES = {"split_size_or_sections": "split_size", "tensor": "input"}  # what torch.split calls its arguments


def operator_of(node: fx.Node) -> Operator | None:
    """Return the table's row for a node in normal form, None for an operator that is not in the table."""
    row = _BY_FUNCTION.get(node.target) if node.op == "call_function" else None
    if row is None or (*row.arguments,)[len(node.args) :] != row.keywords or (*node.kwargs,) != row.keywords:
        return None
    return row


def row_of(call: fx.Node) -> Operator:
    """Return the table's row for a layer's call, which has one."""
    row = operator_of(call)
    assert row is not None
    return row


def argument_node(call: fx.Node, position: int | None) -> fx.Node | None:
    """Return the node at a position of a call's arguments, None where there is no position or a constant stands."""
    value = None if position is None else call.args[position]
    return value if isinstance(value, fx.Node) else None


def normalize_call(node: fx.Node) -> None:
    """Give a table operator the row's own function, with all arguments in place."""
    row = _BY_SPELLING.get(node.target) if node.op in ("call_function", "call_method") else None
    if row is not None:
        respell(node, row, tuple(row.arguments), node.args)


def normalize_aten_call(node: fx.Node, name: str) -> None:
    """Do the same for a call of the ATen operator `name`."""
    row = _BY_ATEN.get(name)
    if row is not None:
        respell(node, row, row.aten_order or tuple(row.arguments), node.args)


def respell(node: fx.Node, row: Operator, order: Sequence[str], args: Sequence[Any]) -> None:
    """Write a call as the row has it; a call that says more than the row can, for example alpha=2, stays as it is."""
    given = _given(row, order, _gathered(row, args), node.kwargs)
    if given is None:
        return
    first, *others = row.arguments
    if row.commutative and not _holds_node(given[first]):  # 1 + x
        given[first], given[others[0]] = given[others[0]], given[first]
    if not _holds_node(given[first]):
        return
    node.op = "call_function"
    node.target = row.functions[0]
    node.args = tuple(_canonical(row, name, given) for name in row.arguments if name not in row.keywords)
    node.kwargs = {name: _canonical(row, name, given) for name in row.keywords}


def _gathered(row: Operator, args: Sequence[Any]) -> Sequence[Any]:
    """Return the arguments with those that a method takes one by one, x.view(2, 3), as one tuple."""
    if not row.spread or not args:
        return args
    at = list(row.arguments).index(row.spread)
    one_by_one = len(args) > at + 1 or isinstance(args[-1], int)
    return (*args[:at], tuple(args[at:])) if one_by_one else args


def _given(
    row: Operator, order: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the arguments by name, None where a call lacks one or has one that the row cannot say."""
    named = {name if name in row.arguments else _ALIASES.get(name, name): value for name, value in kwargs.items()}
    given = dict(zip(order, args, strict=False)) | named
    unsaid = {name: value for name, value in given.items() if name not in row.arguments}
    said = {name: value for name, value in given.items() if name in row.arguments}
    complete = all(name in said for name, default in row.arguments.items() if default is ...)
    neutral = all(
        name in _NEUTRAL and (_NEUTRAL[name] is ... or value is _NEUTRAL[name]) for name, value in unsaid.items()
    )
    plain = not row.spread or isinstance(said.get(row.spread), tuple | list)  # no dtype or node
    return said if complete and neutral and plain and len(args) <= len(order) else None


def _holds_node(value: Any) -> bool:
    return isinstance(value, fx.Node) or (
        isinstance(value, tuple | list) and any(isinstance(entry, fx.Node) for entry in value)
    )


def _canonical(row: Operator, name: str, given: Mapping[str, Any]) -> Any:
    """Return an argument in the one form that it has: tuples for lists, one number for each axis."""
    default = row.arguments[name]
    value = given.get(name, default)
    if default is SAME_AS_KERNEL and (value is default or value is None or not value):
        return _canonical(row, "kernel_size", given)
    if isinstance(value, list):
        value = tuple(value)
    axes = row.per_axis.get(name)
    if axes is None or value is None or isinstance(value, str):
        return value
    if not isinstance(value, tuple):
        return (value,) * axes
    return value * axes if len(value) == 1 else value
