"""Observers: how the range of a tensor is found from what flows through it."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from fxcompress.nn import Quantizer


class Observer(Protocol):
    """What calibration needs: `observe` sees a tensor of shape (channels, values), `range` tells (low, high).

    Both ends are vectors of length `channels`; a tensor with one scale has one channel. An observer of weights whose
    answer depends on the quantizer, for example on its bits, has `range_for(quantizer)` too, which is asked instead.
    """

    def observe(self, x: Tensor) -> None: ...
    def range(self) -> tuple[Tensor, Tensor]: ...


class MinMax:
    """The smallest and the largest value seen."""

    def __init__(self) -> None:
        self._low: Tensor | None = None
        self._high: Tensor | None = None

    def observe(self, x: Tensor) -> None:
        """Widen the range to hold `x`."""
        low, high = torch.aminmax(x, dim=1)
        self._low = low if self._low is None else torch.minimum(self._low, low)
        self._high = high if self._high is None else torch.maximum(self._high, high)

    def range(self) -> tuple[Tensor, Tensor]:
        """Return the ends."""
        assert self._low is not None, "observe something first"
        assert self._high is not None
        return self._low, self._high


class MovingAverage:
    """The average of each batch's smallest and largest value, in which batches fade (Jacob et al. 2018, section 3.1).

    `momentum` is the share of the former average that a batch leaves; the first batch is the average then.
    """

    def __init__(self, momentum: float = 0.99) -> None:
        self._fade = 1 - momentum
        self._ends: Tensor | None = None

    def observe(self, x: Tensor) -> None:
        """Move the range towards that of `x`, which is one batch."""
        ends = torch.stack(torch.aminmax(x, dim=1)).to(torch.promote_types(x.dtype, torch.float32))
        self._ends = ends if self._ends is None else torch.lerp(self._ends, ends, self._fade)

    def range(self) -> tuple[Tensor, Tensor]:
        """Return the ends."""
        assert self._ends is not None, "observe something first"
        low, high = self._ends
        return low, high


class Percentile:
    """The range that holds a percentile `q` of all magnitudes seen, in one pass and bounded memory.

    Magnitudes are counted in a histogram of `bins` equal bins, an even number. When a larger value comes, bins are
    merged in pairs until it fits, so that counts stay exact and the answer is at most one bin too wide: 2 / bins of
    the largest magnitude.
    """

    def __init__(self, q: float = 99.99, bins: int = 8192) -> None:
        self._share, self._bins = q / 100, bins
        self._minmax = MinMax()
        self._counts: Tensor | None = None  # (channels, bins)
        self._top: Tensor | None = None  # (channels, 1): upper end of the last bin

    def observe(self, x: Tensor) -> None:
        """Count the magnitudes of `x`."""
        self._minmax.observe(x)
        magnitude = x.detach().abs().double()
        largest = magnitude.amax(dim=1, keepdim=True)
        if self._counts is None or self._top is None:
            self._counts = torch.zeros(x.shape[0], self._bins, dtype=torch.int64, device=x.device)
            self._top = torch.zeros_like(largest)
        self._top = torch.where(self._top > 0, self._top, largest)  # the first value that is not zero sets the scale
        self._widen(largest)
        width = (self._top / self._bins).clamp(min=torch.finfo(torch.float64).tiny)
        index = (magnitude / width).long().clamp_(max=self._bins - 1)
        index += torch.arange(x.shape[0], device=x.device).unsqueeze(1) * self._bins
        self._counts += torch.bincount(index.flatten(), minlength=self._counts.numel()).view_as(self._counts)

    def _widen(self, largest: Tensor) -> None:
        assert self._counts is not None
        assert self._top is not None
        while (too_small := (self._top < largest).squeeze(1)).any():
            merged = self._counts[too_small].view(-1, self._bins // 2, 2).sum(2)
            self._counts[too_small] = torch.cat([merged, torch.zeros_like(merged)], dim=1)
            self._top[too_small] *= 2

    def range(self) -> tuple[Tensor, Tensor]:
        """Return the ends: what was seen, clipped to the percentile of the magnitudes."""
        assert self._counts is not None, "observe something first"
        assert self._top is not None
        cumulative = self._counts.cumsum(1)
        needed = (cumulative[:, -1:].double() * self._share).ceil().clamp(min=1)
        last_bin = (cumulative < needed).sum(1)
        limit = ((last_bin + 1) * self._top.squeeze(1) / self._bins).to(torch.float32)
        low, high = self._minmax.range()
        return torch.maximum(low, -limit), torch.minimum(high, limit)


class MeanSquaredError(MinMax):
    """The range whose grid has the least squared error, for weights: they are seen once and whole.

    Tries the range seen, and that range shrunk in 79 steps of 1% (the search of BRECQ, Li et al. 2021).
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[Tensor] = []

    def observe(self, x: Tensor) -> None:
        """Keep `x`."""
        super().observe(x)
        self._seen.append(x)

    def range_for(self, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
        """Return the ends for the bits and symmetry of a quantizer."""
        x = torch.cat(self._seen, dim=1)
        low, high = self.range()
        grid = Quantizer(
            quantizer.bits,
            symmetric=quantizer.symmetric,
            axis=0,
            channels=x.shape[0],
            power_of_two=quantizer.power_of_two,
        ).to(x.device)
        least, best = torch.full_like(low, torch.inf), torch.ones_like(low)
        for shrink in torch.arange(100, 20, -1) / 100:
            grid.set_range(low * shrink, high * shrink)
            error = (grid(x) - x).square().sum(1)
            least, best = torch.minimum(least, error), torch.where(error < least, shrink, best)
        return low * best, high * best


OBSERVERS: Mapping[str, Callable[..., Any]] = {
    "minmax": MinMax,
    "moving_average": MovingAverage,
    "percentile": Percentile,
    "mse": MeanSquaredError,
}
