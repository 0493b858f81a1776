"""The percentile observer: clips at a percentile of the magnitudes."""

from torch import Tensor

from fxcompress.measure.observing.histogram import Histogram


class Percentile:
    """The range that holds a percentile `q` of all magnitudes seen.

    It is at most one bin of the histogram too wide: 1 / 4096 of the largest magnitude.
    """

    def __init__(self, q: float = 99.99) -> None:
        self._share = q / 100
        self._histogram = Histogram()

    def observe(self, x: Tensor) -> None:
        """Count `x`."""
        self._histogram.observe(x)

    def range(self) -> tuple[Tensor, Tensor]:
        """Return the ends: what was seen, clipped to the percentile of the magnitudes."""
        cumulative = self._histogram.magnitudes().cumsum(1)
        needed = (cumulative[:, -1:].double() * self._share).ceil().clamp(min=1)
        limit = ((cumulative < needed).sum(1) + 1) * self._histogram.width
        return self._histogram.clipped(-limit, limit)
