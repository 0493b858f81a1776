"""The modules that stand for quantizers in an exported graph: they emit the ONNX nodes that engines look for."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fxcompress.nn import UniformQuantizer
from fxcompress.nn.packing import pack

DOMAIN = "fxcompress"
_PLACES = [-64, 32, 16, 8, 4, 2, 1]  # what the bits of a packed code are worth, high bit first


def lift(bits: int) -> int:
    """Return by how many places the codes of a weight are moved up when they are unpacked."""
    return max(7 - bits, 0)


class _Grid(nn.Module):
    """Hold scale and zero point, and turn integer codes back into real numbers."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: Tensor, zero_point: Tensor, axis: int | None) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        self.axis = axis
        self.axis_attribute = {} if axis is None else {"axis": axis}

    def dequantize(self, codes: Tensor, integer: bool) -> Tensor:
        """Emit DequantizeLinear where an integer kernel takes the codes, otherwise the function `Dequantize`.

        The function computes the same. ONNX Runtime folds it on constants, while it runs DequantizeLinear at each
        call; and behind a DequantizeLinear it quantizes float weights of its own accord, to 8 bits per tensor.
        """
        operands = (codes, self.scale, self.zero_point)
        if integer:
            return _emit("DequantizeLinear", operands, torch.float32, codes.shape, **self.axis_attribute)
        shape = [1] * max(codes.dim(), 1)
        if self.axis is not None:
            shape[self.axis] = -1
        return _emit(f"{DOMAIN}::Dequantize", operands, torch.float32, codes.shape, shape=shape)


class Activation(_Grid):
    """Quantize and dequantize an activation exactly as its Quantizer does, in unsigned codes.

    Signed codes are moved up by 128: the kernels of ONNX Runtime for unsigned activations and signed weights are the
    fast ones. Codes outside `low` .. `high`, in the units of the Quantizer, are clipped.
    """

    low: Tensor
    high: Tensor

    def __init__(self, quantizer: UniformQuantizer, low: int, high: int) -> None:
        shift = 128 if quantizer.symmetric else 0
        super().__init__(quantizer.scale, (quantizer.zero_point + shift).to(torch.uint8), quantizer.axis)
        self.clips = (low + shift, high + shift) != (0, 255)
        self.register_buffer("low", torch.tensor(low + shift, dtype=torch.uint8))
        self.register_buffer("high", torch.tensor(high + shift, dtype=torch.uint8))

    def forward(self, x: Tensor, integer: bool) -> Tensor:
        operands = (x, self.scale, self.zero_point)
        codes = _emit("QuantizeLinear", operands, torch.uint8, x.shape, **self.axis_attribute)
        if self.clips:
            codes = _emit("Clip", (codes, self.low, self.high), torch.uint8, x.shape)
        return self.dequantize(codes, integer)


class Weight(_Grid):
    """Hold the codes of a weight as int8, or packed at fewer bits, and dequantize them.

    `codes` (int8 or uint8) and `zero_point` count in steps of `scale`. They are stored signed, because kernels want
    signed weights. Codes of fewer than 8 bits are unpacked to the high end of 7 bits and the scale is divided to
    match, which changes no value: the bias, an int32 in steps of input scale times weight scale, gains precision, and
    the kernels of processors without VNNI, whose 16-bit sums 8-bit weights can saturate, stay exact.
    """

    codes: Tensor

    def __init__(self, codes: Tensor, scale: Tensor, zero_point: Tensor, bits: int, axis: int | None) -> None:
        offset = 2 ** (bits - 1) if codes.dtype == torch.uint8 else 0
        super().__init__(scale / 2 ** lift(bits), ((zero_point - offset) << lift(bits)).to(torch.int8), axis)
        signed = (codes.to(torch.int16) - offset).to(torch.int8)
        self.packed = bits < 8
        self.places, self.shape = _PLACES[:bits], list(codes.shape)
        self.register_buffer("codes", pack(signed, bits) if self.packed else signed)

    def forward(self, integer: bool) -> Tensor:
        codes = self.codes
        if self.packed:
            codes = _emit(f"{DOMAIN}::Unpack", (codes,), torch.int8, self.shape, places=self.places, shape=self.shape)
        return self.dequantize(codes, integer)


class Bias(nn.Module):
    """Hold the bias of an integer layer as int32 in steps of input scale times weight scale.

    A linear layer on more than two axes is exported as a product and a sum of floats, and gets its bias in float.
    """

    codes: Tensor
    scale: Tensor
    value: Tensor

    def __init__(self, value: Tensor, scale: Tensor, *, linear: bool) -> None:
        super().__init__()
        self.register_buffer("codes", (value.double() / scale.double()).round().to(torch.int32))
        self.register_buffer("scale", scale)
        self.register_buffer("value", value)
        self.linear = linear
        self.axis_attribute = {"axis": 0} if scale.dim() else {}

    def forward(self, x: Tensor) -> Tensor:
        if self.linear and x.dim() != 2:
            return self.value
        operands = (self.codes, self.scale)
        return _emit("DequantizeLinear", operands, torch.float32, self.codes.shape, **self.axis_attribute)


def _emit(
    operator: str, operands: Sequence[Tensor], dtype: torch.dtype, shape_of_result: Sequence[Any], **attributes: Any
) -> Tensor:
    version = 1 if operator.startswith(DOMAIN) else None
    return torch.onnx.ops.symbolic(
        operator, operands, attributes, dtype=dtype, shape=shape_of_result, version=version
    )
