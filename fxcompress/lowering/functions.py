"""The model-local ONNX functions that an exported file carries, so that any engine can run it."""

import onnx_ir
from onnx import parser

# Codes of len(places) bits lie in `packed` one after the other, high bit first. A code is the sum of its bits times
# what their places are worth: the product of a matrix of bits with a vector, which MatMulInteger computes exactly.
_UNPACK = """
<domain: "fxcompress", opset_import: ["": 18]>
Unpack <places, shape> (packed) => (codes)
{
    shifts = Constant <value = uint8[8] {7, 6, 5, 4, 3, 2, 1, 0}> ()
    one = Constant <value = uint8 {1}> ()
    start = Constant <value_ints: ints = [0]> ()
    last = Constant <value_ints: ints = [-1]> ()
    worth = Constant <value_ints: ints = @places> ()
    form = Constant <value_ints: ints = @shape> ()
    bytes = Unsqueeze (packed, last)
    shifted = BitShift <direction: string = "RIGHT"> (bytes, shifts)
    bits = BitwiseAnd (shifted, one)
    stream = Reshape (bits, last)
    width = Shape (worth)
    numel = ReduceProd (form)
    end = Mul (numel, width)
    used = Slice (stream, start, end)
    table = Concat <axis: int = 0> (last, width)
    rows = Reshape (used, table)
    signed = Cast <to: int = 3> (worth)
    column = Unsqueeze (signed, last)
    sums = MatMulInteger (rows, column)
    narrow = Cast <to: int = 3> (sums)
    codes = Reshape (narrow, form)
}
"""

_DEQUANTIZE = """
<domain: "fxcompress", opset_import: ["": 18]>
Dequantize <shape> (codes, scale, zero_point) => (values)
{
    form = Constant <value_ints: ints = @shape> ()
    steps = Cast <to: int = 1> (codes)
    origin = Cast <to: int = 1> (zero_point)
    factor = Reshape (scale, form)
    shift = Reshape (origin, form)
    moved = Sub (steps, shift)
    values = Mul (moved, factor)
}
"""


def local_functions() -> list[onnx_ir.Function]:
    """Return the functions `Unpack` and `Dequantize` of the domain `fxcompress`."""
    return [onnx_ir.serde.deserialize_function(parser.parse_function(text)) for text in (_UNPACK, _DEQUANTIZE)]
