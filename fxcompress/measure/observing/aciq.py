"""The ACIQ observer: clips where clipping and rounding together cost the least, for a known distribution."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from fxcompress.measure.observing.histogram import Histogram
from fxcompress.nn import Quantizer

Prior = Literal["laplace", "gauss"]


class Aciq:
    """The analytic clipping for integer quantization (Banner et al. 2019, section 3).

    Values are taken for distributed as `prior` says, around their mean, with the mean absolute deviation or the
    standard deviation that was seen. Where all are at least zero, as after ReLU, a grid of 2^M levels lies on one
    half of the distribution and is as fine as one of M + 1 bits on both; a symmetric grid spends half of its levels
    below zero and is not.
    """

    def __init__(self, prior: Prior = "laplace") -> None:
        self._prior = prior
        self._histogram = Histogram()

    def observe(self, x: Tensor) -> None:
        """Count `x`."""
        self._histogram.observe(x)

    def range(self) -> tuple[Tensor, Tensor]:
        """Return what was seen."""
        return self._histogram.range()

    def range_for(self, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
        """Return the ends for the bits and symmetry of a quantizer."""
        bits, symmetric = quantizer.bits, getattr(quantizer, "symmetric", True)
        mean, spread = self._moments()
        one_sided = self.range()[0] >= 0
        finer = one_sided & (not symmetric)
        clip = torch.where(finer, optimal_clip(bits + 1, self._prior), optimal_clip(bits, self._prior)) * spread
        clip += self._histogram.width / 2  # as far as the mean is known
        low = torch.where(one_sided, 0.0, mean - clip)
        high = torch.where(one_sided, mean.clamp(min=0), mean) + clip
        return self._histogram.clipped(low, high)

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of each channel."""
        counts, centers = self._histogram.counts.double(), self._histogram.centers()
        total = counts.sum(1, keepdim=True)
        mean = (counts * centers).sum(1, keepdim=True) / total
        away = (centers - mean).abs_()
        if self._prior == "laplace":
            spread = (counts * away).sum(1, keepdim=True) / total
        else:
            spread = ((counts * away.square_()).sum(1, keepdim=True) / total).sqrt()
        return mean.squeeze(1), spread.squeeze(1)


def optimal_clip(bits: int, prior: Prior) -> float:
    """Return where a distribution is best clipped for 2^bits levels, in deviations from its mean.

    The least of clipping and rounding error is where its derivative is zero (Banner et al. 2019, equations 4 to 12):
    for Laplace a e^a = 3 * 4^bits, in mean absolute deviations; for Gauss, in standard deviations,
    a erfc(a / sqrt(2)) + a / (3 * 4^bits) = sqrt(2 / pi) e^(-a^2 / 2). Both sides differ by a rising function of a.
    """
    levels = 3 * 4.0**bits

    def slope(a: float) -> float:
        if prior == "laplace":
            return a / levels - math.exp(-a)
        return a * math.erfc(a / math.sqrt(2)) + a / levels - math.sqrt(2 / math.pi) * math.exp(-a * a / 2)

    return _root(slope, 64.0)


def _root(rising: Callable[[float], float], high: float) -> float:
    """Return where a function, below zero at 0, becomes zero."""
    low = 0.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return high
