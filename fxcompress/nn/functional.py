"""Uniform affine quantization as tensor functions, with the straight-through estimator."""

from typing import Any

import torch
from torch import Tensor


def integer_codes(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """Return the integer codes of `x`, still as floating point: clip(round(x / scale) + zero_point, low, high).

    Divides and rounds half to even exactly as ONNX QuantizeLinear does, so that what is simulated is what runs.
    `scale` and `zero_point` broadcast against `x`.
    """
    return (x.to(torch.promote_types(x.dtype, scale.dtype)) / scale).round_().add_(zero_point).clamp_(low, high)


class _FakeQuantize(torch.autograd.Function):
    """Quantize and dequantize; the gradient passes where the code was not clipped (Jacob et al. 2018, section 3)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
        unclipped = (x / scale).round_().add_(zero_point)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward((unclipped >= low) & (unclipped <= high))
        return unclipped.clamp_(low, high).sub_(zero_point).mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        (inside,) = ctx.saved_tensors
        return grad * inside, None, None, None, None


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """Return `x` rounded to the grid of `scale` and `zero_point`, in the shape and dtype of `x`."""
    wide = x.to(torch.promote_types(x.dtype, scale.dtype))  # a half-precision quotient would miss codes
    return _FakeQuantize.apply(wide, scale, zero_point, low, high).to(x.dtype)


def folded_weight(weight: Tensor, gamma: Tensor | None, variance: Tensor, eps: float, axis: int = 0) -> Tensor:
    """Return the weight of a layer with its batch norm folded in (Jacob et al. 2018, equation 14).

    `gamma` and `variance` hold one value for each output channel, which lies on `axis` of `weight`.
    """
    factor = _factor(gamma, variance, eps)
    shape = [1] * weight.dim()
    shape[axis] = -1
    if factor.numel() != weight.shape[axis]:  # grouped transposed convolution: channels are split over both axes
        groups = factor.numel() // weight.shape[axis]
        blocks = weight.unflatten(0, (groups, -1))
        return (blocks * factor.view(groups, 1, -1, *shape[2:])).flatten(0, 1)
    return weight * factor.view(shape)


def folded_bias(
    bias: Tensor | None, gamma: Tensor | None, beta: Tensor | None, mean: Tensor, variance: Tensor, eps: float
) -> Tensor:
    """Return the bias of a layer with its norm folded in: gamma * (bias - mean) / sqrt(variance + eps) + beta."""
    shift = -mean if bias is None else bias - mean
    shift = shift * _factor(gamma, variance, eps)
    return shift if beta is None else shift + beta


def _factor(gamma: Tensor | None, variance: Tensor, eps: float) -> Tensor:
    factor = torch.rsqrt(variance + eps)
    return factor if gamma is None else gamma * factor


def central_kernel(weight: Tensor, margin: int) -> Tensor:
    """Return a convolution's weight without its outer `margin` on each side of each kernel axis."""
    for axis in range(2, weight.dim()):
        weight = weight.narrow(axis, margin, weight.shape[axis] - 2 * margin)
    return weight
