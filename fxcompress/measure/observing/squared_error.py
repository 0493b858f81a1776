"""The squared error observer: the range whose grid rounds what was seen with the least error."""

import torch
from torch import Tensor

from fxcompress.measure.observing.histogram import Histogram
from fxcompress.nn import Quantizer

_KEPT = 2**16  # values of a channel up to which they are kept themselves
_CELLS = 2**20  # numbers rounded at a time


class MeanSquaredError:
    """The range whose levels have the least squared error.

    Tries the range seen, and that range shrunk in 79 steps of 1% (the search of BRECQ, Li et al. 2021, whose code
    sums errors to the power of 2.4). What is seen at once and has at most 65,536 values in a channel, as weights do,
    is searched value by value; anything else bin by bin of a histogram.
    """

    def __init__(self, exponent: float = 2.0) -> None:
        self._exponent = exponent
        self._histogram = Histogram()
        self._seen: Tensor | None = None
        self._batches = 0

    def observe(self, x: Tensor) -> None:
        """Count `x`, and keep it if it is all."""
        self._histogram.observe(x)
        self._batches += 1
        self._seen = x if self._batches == 1 and x.shape[1] <= _KEPT else None

    def range(self) -> tuple[Tensor, Tensor]:
        """Return what was seen."""
        return self._histogram.range()

    def range_for(self, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
        """Return the ends for the levels of a quantizer."""
        low, high = self.range()
        x, counts = self._values()
        wide_low, wide_high = low.double().clamp(max=0), high.double().clamp(min=0)
        shrinks = torch.arange(100, 20, -1, dtype=torch.float64, device=x.device) / 100
        least, best = torch.full_like(x[:, 0], torch.inf), torch.ones_like(x[:, 0])
        for some in shrinks.split(max(1, _CELLS // x.numel())):
            shrunk_low, shrunk_high = (some.view(-1, 1, 1) * end.unsqueeze(1) for end in (wide_low, wide_high))
            errors = quantizer.round_between(x, shrunk_low, shrunk_high).sub_(x).abs_().pow_(self._exponent)
            error, place = (errors if counts is None else errors.mul_(counts)).sum(2).min(0)
            best = torch.where(error < least, some[place].to(best), best)
            least = torch.minimum(least, error)
        return low * best, high * best

    def _values(self) -> tuple[Tensor, Tensor | None]:
        """Return what was seen, or the middle of each bin that is not empty and its count."""
        if self._seen is not None:
            return self._seen.to(torch.promote_types(self._seen.dtype, torch.float32)), None
        used = self._histogram.counts.any(0)
        return self._histogram.centers()[:, used].float(), self._histogram.counts[:, used].float()
