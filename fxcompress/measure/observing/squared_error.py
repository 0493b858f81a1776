"""The squared error observer: the range whose grid rounds what was seen with the least error."""

import torch
from torch import Tensor

from fxcompress.measure.observing.histogram import Histogram
from fxcompress.nn import Quantizer
from fxcompress.nn.functional import code_ends, fake_quantize, uniform_grid

_KEPT = 2**16  # values of a channel up to which they are kept themselves


class MeanSquaredError:
    """The range whose grid has the least squared error.

    Tries the range seen, and that range shrunk in 79 steps of 1% (the search of BRECQ, Li et al. 2021). What is seen
    at once and has at most 65,536 values in a channel, as weights do, is searched value by value; anything else bin
    by bin of a histogram.
    """

    def __init__(self) -> None:
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
        """Return the ends for the bits and symmetry of a quantizer."""
        low, high = self.range()
        x, counts = self._values()
        symmetric, power_of_two = getattr(quantizer, "symmetric", True), getattr(quantizer, "power_of_two", False)
        codes = code_ends(quantizer.bits, symmetric, getattr(quantizer, "narrow", symmetric))
        wide_low, wide_high = low.double().clamp(max=0), high.double().clamp(min=0)
        least, best = torch.full_like(x[:, 0], torch.inf), torch.ones_like(x[:, 0])
        for shrink in (percent / 100 for percent in range(100, 20, -1)):
            scale, zero_point = uniform_grid(wide_low * shrink, wide_high * shrink, *codes, symmetric, power_of_two)
            rounded = fake_quantize(x, scale.to(x).unsqueeze(1), zero_point.to(x).unsqueeze(1), *codes)
            squares = rounded.sub_(x).square_()
            error = (squares if counts is None else squares.mul_(counts)).sum(1)
            least, best = torch.minimum(least, error), torch.where(error < least, shrink, best)
        return low * best, high * best

    def _values(self) -> tuple[Tensor, Tensor | None]:
        """Return what was seen, or the middle of each bin that is not empty and its count."""
        if self._seen is not None:
            return self._seen.to(torch.promote_types(self._seen.dtype, torch.float32)), None
        used = self._histogram.counts.any(0)
        return self._histogram.centers()[:, used].float(), self._histogram.counts[:, used].float()
