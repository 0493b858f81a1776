"""The operator table: what fxcompress knows of each operator. Adding an operator is one row."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

Shape = Sequence[int]
_CONVOLUTION = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
_TRANSPOSED = {"bias": None, "stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}
_EMBEDDING = {"padding_idx": None, "max_norm": None, "norm_type": 2.0, "scale_grad_by_freq": False, "sparse": False}


@dataclass(frozen=True, eq=False)
class Operator:
    """One kind of operator.

    `functions` are its spellings as functions or names of methods; the first is the one in the normal form.
    `arguments` are its positional parameters in order with their defaults. `inputs` and `weight` are positions in it:
    tensors that flow in, and the weight. `out_axis` is the axis of the weight that holds output channels. `macs`
    counts multiply-accumulates from the shapes of first input, weight and output. `integer` says that engines run it
    in integers where weight and input are quantized.
    """

    kind: str
    functions: tuple[Callable[..., Any] | str, ...]
    arguments: dict[str, Any]
    inputs: tuple[int, ...]
    weight: int | None = None
    out_axis: int = 0
    macs: Callable[[Shape, Shape, Shape], int] = lambda input, weight, output: 0
    integer: bool = False

    @property
    def bias(self) -> int | None:
        """The position of the bias, None where the operator has none."""
        return list(self.arguments).index("bias") if "bias" in self.arguments else None


def _per_output(input: Shape, weight: Shape, output: Shape) -> int:
    return prod(output) * prod(weight[1:])


def _per_input(input: Shape, weight: Shape, output: Shape) -> int:
    return prod(input) * prod(weight[1:])


def _convolution(kind: str, *functions: Callable[..., Any]) -> Operator:
    return Operator(kind, functions, {"input": ..., "weight": ...} | _CONVOLUTION, (0,), 1, 0, _per_output, True)


def _transposed(kind: str, *functions: Callable[..., Any]) -> Operator:
    return Operator(kind, functions, {"input": ..., "weight": ...} | _TRANSPOSED, (0,), 1, 1, _per_input)


OPERATORS = (
    _convolution("conv1d", F.conv1d, torch.conv1d),
    _convolution("conv2d", F.conv2d, torch.conv2d),
    _convolution("conv3d", F.conv3d, torch.conv3d),
    _transposed("conv_transpose1d", F.conv_transpose1d, torch.conv_transpose1d),
    _transposed("conv_transpose2d", F.conv_transpose2d, torch.conv_transpose2d),
    _transposed("conv_transpose3d", F.conv_transpose3d, torch.conv_transpose3d),
    Operator("linear", (F.linear,), {"input": ..., "weight": ..., "bias": None}, (0,), 1, 0, _per_output, True),
    Operator("embedding", (F.embedding,), {"input": ..., "weight": ...} | _EMBEDDING, (), 1, 0),
    Operator("add", (torch.add, operator.add, "add"), {"input": ..., "other": ...}, (0, 1)),
)
KINDS = tuple(row.kind for row in OPERATORS)
_BY_FUNCTION: dict[Any, Operator] = {row.functions[0]: row for row in OPERATORS}
_BY_SPELLING: dict[Any, Operator] = {function: row for row in OPERATORS for function in row.functions}


def operator_of(node: fx.Node) -> Operator | None:
    """Return the table's row for a node in normal form, None for an operator that is not in the table."""
    row = _BY_FUNCTION.get(node.target) if node.op == "call_function" else None
    return row if row is not None and len(node.args) == len(row.arguments) and not node.kwargs else None


def argument_node(call: fx.Node, position: int | None) -> fx.Node | None:
    """Return the node at a position of a call's arguments, None where there is no position or a constant stands."""
    value = None if position is None else call.args[position]
    return value if isinstance(value, fx.Node) else None


def normalize_call(node: fx.Node) -> None:
    """Give a table operator the row's own function, with all arguments in place and none by keyword."""
    row = _BY_SPELLING.get(node.target) if node.op in ("call_function", "call_method") else None
    if row is None or not set(node.kwargs) <= set(row.arguments) or len(node.args) > len(row.arguments):
        return  # for example torch.add(x, y, alpha=2): not the operator that the row describes
    given = dict(zip(row.arguments, node.args, strict=False)) | node.kwargs
    node.op = "call_function"
    node.target = row.functions[0]
    node.args = tuple(given.get(name, default) for name, default in row.arguments.items())
    node.kwargs = {}
