"""Stored weights: the codes that a quantized weight has in the exported file, and the scales that go with them."""

from collections.abc import Iterable

import torch
from torch import Tensor

from fxcompress.lowering.export_modules import Weight, lift
from fxcompress.lowering.integer_calls import IntegerCall
from fxcompress.nn import UniformQuantizer

_BIAS_LIMIT = 2**30  # half the range of int32: the other half is for the products


def stored_weight(value: Tensor, quantizer: UniformQuantizer, calls: Iterable[IntegerCall]) -> Weight:
    """Return the weight `value`, which lies on the grid of `quantizer`, as codes for all its integer `calls`.

    A bias is stored in int32 steps of input scale times weight scale. In a channel whose weights are very small next
    to its bias (a dead channel under batch norm) it would overflow: that channel's scale is raised, which moves each
    product by less than 2^-22 of the bias. A channel of zeros may have any scale and gets the finest.
    """
    codes, scale, zero_point = quantizer.codes(value), quantizer.scale, quantizer.zero_point
    needed = torch.zeros_like(scale)
    for call in calls:
        if call.bias is not None:
            smallest = call.bias.abs() / call.input_scale * (2 ** lift(quantizer.bits) / _BIAS_LIMIT)
            needed = torch.maximum(needed, smallest if scale.dim() else smallest.max())
    if not needed.any():
        return Weight(codes, scale, zero_point, quantizer.bits, quantizer.axis)
    signed = codes.to(torch.int32) - _along(zero_point, quantizer.axis, codes)
    others = [axis for axis in range(codes.dim()) if axis != quantizer.axis]
    zeros = (signed == 0).all() if quantizer.axis is None else (signed == 0).amin(others)
    raised = torch.where(zeros & (needed > 0), needed, torch.maximum(scale, needed)).clamp(min=torch.finfo().tiny)
    factor = _along(scale.double() / raised, quantizer.axis, codes)
    codes = ((signed * factor).round() + _along(zero_point, quantizer.axis, codes)).to(codes.dtype)
    return Weight(codes, raised, zero_point, quantizer.bits, quantizer.axis)


def _along(vector: Tensor, axis: int | None, like: Tensor) -> Tensor:
    shape = [1] * like.dim()
    if axis is not None:
        shape[axis] = -1
    return vector.view(shape)
