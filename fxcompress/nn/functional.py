"""Quantization as tensor functions, with the straight-through estimator; folding of batch norm into weights."""

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
    return saturated(_FakeQuantize.apply(wide, scale, zero_point, low, high), x.dtype)


def saturated(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `x` in a type that may be narrower, what is beyond its largest number at that number.

    The zero point of an affine grid is rounded, so that an end of it can lie half a step beyond the range it spans:
    beyond what float16 holds where the range is all of it.
    """
    if x.dtype is dtype:
        return x
    largest = torch.finfo(dtype).max
    return x.clamp(-largest, largest).to(dtype)


class _StraightThrough(torch.autograd.Function):
    """Return a value that was computed from the input as if it were the input, for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, inside: Tensor | None) -> Tensor:
        if inside is not None:
            ctx.save_for_backward(inside)
        return value.view_as(value)  # an input that is returned as it is would be taken for changed in place

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return (grad * ctx.saved_tensors[0] if ctx.saved_tensors else grad), None, None


def straight_through(x: Tensor, value: Tensor, inside: Tensor | None = None) -> Tensor:
    """Return `value`, the rounded `x`; the gradient goes to `x` where `inside` says so, everywhere by default."""
    return _StraightThrough.apply(x, value, inside)


def code_ends(bits: int, symmetric: bool, narrow: bool) -> tuple[int, int]:
    """Return the lowest and the highest code of 2 to 8 or 16 bits, signed (symmetric) or unsigned.

    Narrow codes leave out the lowest. Raises ValueError for another number of bits.
    """
    if not (2 <= bits <= 8 or bits == 16):
        raise ValueError(f"a Quantizer has 2 to 8 bits, or 16, not {bits}")
    lowest = -(2 ** (bits - 1)) if symmetric else 0
    return lowest + narrow, lowest + 2**bits - 1


def uniform_grid(
    low: Tensor, high: Tensor, first: int, last: int, symmetric: bool, power_of_two: bool
) -> tuple[Tensor, Tensor]:
    """Return scale and zero point with which the codes `first` .. `last` span `low` .. `high`, a range around zero.

    Computed in the ranges' own float type; S = max(-low, high) / last and Z = 0 where symmetric, else
    S = (high - low) / (last - first) and Z = round(first - low / S), half to even (Jacob et al. 2018, section 3).
    """
    span = torch.maximum(-low, high) if symmetric else high - low
    steps = last if symmetric else last - first
    if power_of_two:
        span, steps = _next_power_of_two(span), last + 1
    # an all-zero channel has no range; any grid represents it exactly
    scale = torch.where(span == 0, 1.0, span / steps).clamp(min=torch.finfo(torch.float32).tiny)
    zero_point = torch.zeros_like(scale) if symmetric else (first - low / scale).round().clamp(first, last)
    return scale, zero_point


def scale_to(low: Tensor, high: Tensor, largest: float) -> Tensor:
    """Return the scale with which the levels -largest .. largest end at the larger magnitude of `low` .. `high`."""
    span = torch.maximum(-low, high)
    return torch.where(span > 0, span / largest, 1.0).clamp(min=torch.finfo(torch.float32).tiny)


def _next_power_of_two(x: Tensor) -> Tensor:
    """Return the least powers of two that are not below positive numbers, 0 for 0."""
    mantissa, exponent = torch.frexp(x)  # the mantissa is from 0.5 to below 1
    return torch.where(x == 0, 0.0, torch.exp2((exponent - (mantissa == 0.5).int()).to(x.dtype)))


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
