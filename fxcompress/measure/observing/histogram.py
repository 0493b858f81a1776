"""The histogram of signed values that observers read: one pass, bounded memory, exact counts."""

from functools import cache

import torch
from torch import Tensor

from fxcompress.measure.observing.ranges import MinMax

_LOG_BINS = 13
BINS = 2**_LOG_BINS  # on each side of zero
_LEAST = -126 + _LOG_BINS  # exponent of the top at which a bin is as narrow as the least normal float32
_INT16 = 2**15  # numbers that it counts to
_PIECE = 2**18  # values counted at a time: they stay in the cache


def _zeros(channels: int, first: int, device: torch.device) -> tuple[Tensor, int]:
    """Return the index of the bin above zero of each channel, if indices begin at bin `first`, and how many lanes.

    Neighbours in one channel have different lanes of counters: equal ones, such as the zeros behind a ReLU, would
    wait for each other.
    """
    bins = 2 * BINS - first
    if channels == 1:
        return _zeros_of_lanes(first, _INT16 // bins, device), _INT16 // bins
    dtype = torch.int32 if channels * bins <= torch.iinfo(torch.int32).max else torch.int64
    return torch.arange(channels, dtype=dtype, device=device).mul_(bins).add_(BINS - first).unsqueeze(1), 1


@cache
def _zeros_of_lanes(first: int, lanes: int, device: torch.device) -> Tensor:
    lane = torch.arange(_PIECE, device=device) % lanes
    return (lane * (2 * BINS - first) + BINS - first).to(torch.int16).unsqueeze(0)


class Histogram(MinMax):
    """Counts of the values of each channel in equal bins from -top to top, which are `BINS` on each side of zero.

    Tops are powers of two above the largest magnitude seen. So a bin is a power of two wide, its index is exact in
    floating point (but for negative values next to nothing, which may count as zero), and when a larger value comes
    whole groups of bins become one: the counts are those that all values together would give, whatever the order in
    which they came.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts = torch.zeros(0)
        self._exponent = torch.zeros(0)

    def observe(self, x: Tensor) -> None:
        """Count `x` of shape (channels, values); raises ValueError where it holds NaN or infinity."""
        for piece in x.detach().split(_PIECE, dim=1):
            super().observe(piece)
            self._count(piece.to(torch.promote_types(x.dtype, torch.float32)))

    def _count(self, x: Tensor) -> None:
        if not len(self.counts):
            self.counts = torch.zeros(len(x), 2 * BINS, dtype=torch.int64, device=x.device)
            self._exponent = torch.full((len(x),), _LEAST, device=x.device)
        self._widen()
        per_value = torch.exp2((_LOG_BINS - self._exponent).to(x.dtype)).unsqueeze(1)
        first = BINS if (self.range()[0] >= 0).all() else 0  # no value is in a bin before it
        counts = self.counts[:, first:]
        zero, lanes = _zeros(len(x), first, x.device)
        index = (x * per_value).floor_().to(zero.dtype).add_(zero[:, : x.shape[1]])
        found = torch.bincount(index.flatten(), minlength=lanes * counts.numel())
        counts += found.view(lanes, *counts.shape).sum(0)

    def _widen(self) -> None:
        """Merge bins until the largest magnitude seen has one."""
        largest = self.largest()
        needed = torch.where(largest > 0, torch.frexp(largest).exponent, _LEAST)
        merged = (needed - self._exponent).clamp_(min=0)
        if not merged.any():
            return
        self._exponent += merged
        old = torch.arange(-BINS, BINS, device=merged.device)
        new = (old >> merged.clamp(max=_LOG_BINS).unsqueeze(1)) + BINS
        self.counts = torch.zeros_like(self.counts).scatter_add_(1, new, self.counts)

    def largest(self) -> Tensor:
        """Return the largest magnitude seen of each channel."""
        low, high = self.range()
        return torch.maximum(-low, high).to(torch.promote_types(low.dtype, torch.float32))

    @property
    def width(self) -> Tensor:
        """The width of a bin of each channel, in float64."""
        return torch.exp2((self._exponent - _LOG_BINS).double())

    def magnitudes(self) -> Tensor:
        """Return the counts of magnitudes, of shape (channels, BINS)."""
        return self.counts[:, BINS:] + self.counts[:, :BINS].flip(1)

    def centers(self) -> Tensor:
        """Return the middle of each bin of each channel, in float64."""
        middle = torch.arange(-BINS, BINS, dtype=torch.float64, device=self.counts.device) + 0.5
        return middle * self.width.unsqueeze(1)

    def clipped(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return the part of low .. high in which something was seen."""
        seen_low, seen_high = self.range()
        return torch.maximum(low.to(seen_low), seen_low), torch.minimum(high.to(seen_high), seen_high)
