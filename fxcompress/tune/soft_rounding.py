"""Roundings and steps as things to be learned: by degrees while they are, whole when they are done."""

from typing import Any

import torch
from torch import Tensor, nn

from fxcompress.nn import UniformQuantizer
from fxcompress.nn.functional import saturated

_GAMMA, _ZETA = -0.1, 1.1  # the sigmoid is stretched beyond 0 and 1, so that it reaches both (AdaRound, equation 23)


class SoftRounding(nn.Module):
    """A weight on its quantizer's grid, each element between two codes (Nagel et al. 2020, section 3).

    W~ = S * (clip(floor(W / S) + Z + h(V), low, high) - Z), h(V) = clip(sigmoid(V) * (zeta - gamma) + gamma, 0, 1);
    V starts where h(V) is the fraction that floor leaves, so that W~ starts as W. Zeros of the weight stay zero.
    """

    def __init__(self, quantizer: UniformQuantizer, weight: Tensor) -> None:
        super().__init__()
        self._low, self._high = quantizer.low, quantizer.high
        self._scale = quantizer.layout.spread(quantizer.scale, weight)
        self._zero_point = quantizer.layout.spread(quantizer.zero_point, weight)
        self._dtype = weight.dtype
        steps = weight.to(torch.promote_types(weight.dtype, torch.float32)) / self._scale
        self._floor = steps.floor() + self._zero_point
        fraction = steps - steps.floor()
        self._fixed = weight == 0
        self.v = nn.Parameter(-torch.log((_ZETA - _GAMMA) / (fraction - _GAMMA) - 1))

    def _up(self) -> Tensor:
        """Return how far each element is rounded up, from 0 to 1."""
        up = torch.sigmoid(self.v).mul(_ZETA - _GAMMA).add(_GAMMA).clamp(0, 1)
        return up.masked_fill(self._fixed, 0)

    def forward(self, *_: Any) -> Tensor:
        return self._on_grid(self._up())

    def hard(self) -> Tensor:
        """Return the weight with each element rounded to the code it is nearer to."""
        return self._on_grid((self._up() >= 0.5).to(self._floor.dtype))

    def penalty(self, beta: float) -> Tensor:
        """Return how undecided the roundings are: sum of 1 - |2 h(V) - 1|^beta (equation 24)."""
        up = self._up()
        return (1 - (2 * up - 1).abs().pow(beta)).masked_fill(self._fixed, 0).sum()

    def _on_grid(self, up: Tensor) -> Tensor:
        codes = (self._floor + up).clamp(self._low, self._high)
        return saturated((codes - self._zero_point) * self._scale, self._dtype)


class LearnedScale(nn.Module):
    """The quantizer of an activation, with its scale to be learned (LSQ, Esser et al. 2020, equation 3).

    Learned is `log_ratio`, the logarithm of the scale over what it was: a step of it is a share of the scale, large
    or small, and the scale stays positive.
    """

    def __init__(self, quantizer: UniformQuantizer) -> None:
        super().__init__()
        self._low, self._high, self._zero_point = quantizer.low, quantizer.high, quantizer.zero_point
        self._start = quantizer.scale.detach().clone()
        self.log_ratio = nn.Parameter(torch.zeros_like(self._start))

    @property
    def scale(self) -> Tensor:
        """The scale as it is now."""
        return self._start * self.log_ratio.exp()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale
        steps = x.to(torch.promote_types(x.dtype, scale.dtype)) / scale  # its gradient overflows in half
        codes = steps + (steps.round() - steps).detach() + self._zero_point
        return saturated((codes.clamp(self._low, self._high) - self._zero_point) * scale, x.dtype)
