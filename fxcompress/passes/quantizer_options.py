"""Which quantizers a rule asks for: one, or one for each value of its open fields."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import nn

from fxcompress.nn import (
    CodebookQuantizer,
    DynamicQuantizer,
    Float8Quantizer,
    Layout,
    Quantizer,
    UniformQuantizer,
)
from fxcompress.nn.allocated import AllocatedQuantizer
from fxcompress.policies.quantizing import InputSpec, WeightSpec
from fxcompress.policies.rules import is_open
from fxcompress.policies.values import SIGNS


class Option(NamedTuple):
    """One way to quantize a tensor: its label in a Choice, the module, and the open fields in the policy's words."""

    label: str
    module: nn.Module
    settings: dict[str, Any]


def options(spec: WeightSpec | InputSpec, out_axis: int, shape: Callable[[], Sequence[int]]) -> list[Option]:
    """Return each way that a rule leaves open to quantize a tensor, or the one that it states; an Identity is float.

    `out_axis` is the axis of the output channels of a weight, `shape` gives the shape that enters the quantizer.
    Open bits and open group sizes make their product; float has no groups.
    """
    made = _of_weight(spec, out_axis, shape) if isinstance(spec, WeightSpec) else _of_input(spec)
    return list(made)


def _of_input(spec: InputSpec) -> Iterator[Option]:
    for bits in _each(spec.bits):
        settings = {"input.bits": bits} if is_open(spec.bits) else {}
        if bits == "float":
            yield Option("float", nn.Identity(), settings)
            continue
        grid: Any = {"symmetric": spec.symmetric, "narrow": spec.narrow, "power_of_two": spec.power_of_two}
        quantizer: Quantizer
        if spec.dynamic:
            quantizer = DynamicQuantizer(bits, token=spec.per == "token", **grid)
        else:
            quantizer = Float8Quantizer(bits) if isinstance(bits, str) else UniformQuantizer(bits, **grid)
            quantizer.observer = spec.observer
        yield Option(quantizer.dtype_name, quantizer, settings)


def _of_weight(spec: WeightSpec, out_axis: int, shape: Callable[[], Sequence[int]]) -> Iterator[Option]:
    for bits in _each(spec.bits):
        settings = {"weight.bits": bits} if is_open(spec.bits) else {}
        if bits == "float":
            yield Option("float", nn.Identity(), settings)
            continue
        if spec.per != "group" or spec.codebook_of(bits) == "kmeans":
            quantizer = _weight_quantizer(spec, bits, _layout(spec, out_axis, shape))
            yield Option(quantizer.dtype_name, quantizer, settings)
            continue
        for size in _each(spec.group_size):
            quantizer = _weight_quantizer(spec, bits, Layout.group(out_axis, shape(), size))
            if is_open(spec.group_size):
                yield Option(f"{quantizer.dtype_name} g{size}", quantizer, settings | {"weight.group_size": size})
            else:
                yield Option(quantizer.dtype_name, quantizer, settings)


def _layout(spec: WeightSpec, out_axis: int, shape: Callable[[], Sequence[int]]) -> Layout:
    return Layout.channel(out_axis, shape()[out_axis]) if spec.per == "channel" else Layout()


def _weight_quantizer(spec: WeightSpec, bits: int | str, layout: Layout) -> Quantizer:
    codebook = spec.codebook_of(bits)
    if isinstance(bits, str):
        form = CodebookQuantizer if bits in SIGNS else Float8Quantizer
        quantizer: Quantizer = form(bits, layout=layout)
    elif codebook is not None:
        quantizer = CodebookQuantizer(codebook, bits, layout=Layout() if codebook == "kmeans" else layout)
    else:
        grid: Any = {"symmetric": spec.symmetric, "narrow": spec.narrow, "power_of_two": spec.power_of_two}
        if spec.allocates(bits):
            assert layout.axis is not None  # it is per channel
            quantizer = AllocatedQuantizer(bits, axis=layout.axis, channels=layout.channels, **grid)
        else:
            quantizer = UniformQuantizer(bits, layout=layout, **grid)
    if quantizer.needs_range:
        quantizer.observer = spec.observer
    return quantizer


def _each(value: Any) -> tuple[Any, ...]:
    return value if is_open(value) else (value,)
