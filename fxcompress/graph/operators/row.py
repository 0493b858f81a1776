"""A row of the operator table: what it says of one kind of operator."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

Shape = Sequence[int]
Channels = Literal[
    "product",
    "elementwise",
    "movement",
    "pooling",
    "reduction",
    "normalization",
    "softmax",
    "contraction",
    "unknown",
]
SAME_AS_KERNEL = object()  # the default of a pooling's stride


@dataclass(frozen=True, eq=False)
class Operator:
    """One kind of operator.

    `functions` are its spellings as functions or names of methods; the first is the one in the normal form.
    `arguments` are its parameters in order with their defaults, `...` where one must be given; the last of them,
    named in `keywords`, are taken by keyword only. `inputs` and `weight` are positions in it: tensors that flow in
    and may be quantized, and the weight. `out_axis` is the axis of the weight that holds output channels. `macs`
    counts multiply-accumulates from the shapes of first input, weight and output. `integer` says that engines run it
    in integers where weight and input are quantized. `channels` says how channels pass through: multiplied by the
    weight (product), each on its own (elementwise), rearranged (movement), ...
    `aten` are its names among torch's ATen operators, by default the kind, and `aten_order` its arguments there,
    where their order is another. `per_axis` tells for how many axes a single number stands, by argument. `spread` is
    the argument that a method takes one by one: x.view(2, 3).
    `commutative` operators may have a number in the first place: 1 + x.
    """

    kind: str
    functions: tuple[Callable[..., Any] | str, ...]
    arguments: dict[str, Any]
    keywords: tuple[str, ...] = ()
    inputs: tuple[int, ...] = ()
    weight: int | None = None
    out_axis: int = 0
    macs: Callable[[Shape, Shape, Shape], int] = lambda input, weight, output: 0
    integer: bool = False
    channels: Channels = "unknown"
    aten: tuple[str, ...] = ()
    aten_order: tuple[str, ...] = ()
    per_axis: dict[str, int] = field(default_factory=dict)
    spread: str = ""
    commutative: bool = False

    @property
    def bias(self) -> int | None:
        """The position of the bias, None where the operator has none."""
        return list(self.arguments).index("bias") if "bias" in self.arguments else None

    @property
    def is_layer(self) -> bool:
        """Whether the operator has a weight or inputs that a policy can speak of."""
        return self.weight is not None or bool(self.inputs)


def per_output(input: Shape, weight: Shape, output: Shape) -> int:
    """Count one product of the kernel for each output."""
    return prod(output) * prod(weight[1:])


def per_input(input: Shape, weight: Shape, output: Shape) -> int:
    """Count one product of the kernel for each input."""
    return prod(input) * prod(weight[1:])


def per_column(input: Shape, weight: Shape, output: Shape) -> int:
    """Count one product of the weight's columns, which hold its inputs, for each output."""
    return prod(output) * weight[0]
