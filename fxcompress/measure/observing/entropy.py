"""The entropy observer: clips where the quantized distribution tells the most of the distribution seen."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fxcompress.measure.observing.histogram import BINS, Histogram
from fxcompress.nn import Quantizer

_BINS = 2048  # on each side of zero, as TensorRT has them
_STEP_BITS = 8  # of a threshold that are tried: 2^7 thresholds or more for each doubling
_EMPTY = 1e-4  # what a bin counts in the quantized distribution that nothing but outliers fall in
_SAME = 1e-9  # divergences that differ by rounding only
_CELLS = 2**20  # numbers worked on at a time


class Entropy:
    """The range whose quantized distribution has the least Kullback-Leibler divergence from the one seen.

    Numbers of bins from zero are tried as the threshold (Migacz, "8-bit Inference with TensorRT", GTC 2017), in steps
    of less than 1% of the threshold where a bin is less, and all that was seen. The distribution seen has what lies
    beyond the threshold in its last bin. The quantized one leaves that out and spreads the rest of each level evenly
    over its bins that are not empty. A symmetric quantizer of b bits has 2^(b-1) levels for magnitudes; an affine one
    has 2^b - 1 for values on one side of zero, or for both sides of a threshold that is alike on both. Of thresholds
    that are equally good the widest is taken.
    """

    def __init__(self) -> None:
        self._histogram = Histogram()

    def observe(self, x: Tensor) -> None:
        """Count `x`."""
        self._histogram.observe(x)

    def range(self) -> tuple[Tensor, Tensor]:
        """Return what was seen."""
        return self._histogram.range()

    def range_for(self, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
        """Return the ends for the bits and symmetry of a quantizer."""
        low, high = self.range()
        seen, symmetric = self._histogram, getattr(quantizer, "symmetric", True)
        levels = 2 ** (quantizer.bits - 1) if symmetric else 2**quantizer.bits - 1
        two_sided = (low < 0) & (high > 0) & (not symmetric)
        width = seen.width * (BINS // _BINS)
        reach = (seen.largest().double() / width).floor().long() + 1  # bins up to the largest magnitude
        best = torch.empty_like(reach)
        for rows, counts, zero in ((two_sided, seen.counts, _BINS), (~two_sided, seen.magnitudes(), 0)):
            merged = counts[rows].unflatten(1, (-1, BINS // _BINS)).sum(2)
            best[rows] = _best_reach(merged, zero, levels, reach[rows])
        return seen.clipped(-best * width, best * width)


def _best_reach(counts: Tensor, zero: int, levels: int, most: Tensor) -> Tensor:
    """Return how many bins from the one at `zero` each channel is best clipped, at most `most` of the channel.

    Where zero is not the first bin, both sides are clipped alike. A channel with no more bins than levels is not
    clipped.
    """
    sides = 2 if zero else 1
    fewest = -(-levels // sides)
    if not len(counts) or fewest > (last := int(most.max())):
        return most
    tried = torch.arange(fewest, last + 1, device=counts.device)
    step = 1 << (torch.frexp(tried.float()).exponent - _STEP_BITS).clamp_(min=0)
    tried = tried[(tried % step == 0) | torch.isin(tried, most)]
    starts = zero - tried if zero else torch.zeros_like(tried)
    rows = max(1, _CELLS // (len(tried) * levels))
    divergence = torch.cat([divergences(part, starts, sides * tried, levels) for part in counts.split(rows)])
    divergence.masked_fill_(tried > most.unsqueeze(1), torch.inf)
    least = divergence.amin(1, keepdim=True)
    widest = torch.where(divergence <= least + _SAME, tried, 0).amax(1)
    return torch.where(least.squeeze(1).isfinite(), widest, most)


def divergences(counts: Tensor, starts: Tensor, widths: Tensor, levels: int) -> Tensor:
    """Return the Kullback-Leibler divergence of each histogram from its quantized form, for each window of bins.

    `counts` are of shape (channels, bins); window k is `widths[k]` bins from `starts[k]` on, in `levels` levels of
    equal width; the result is of shape (channels, windows). All bins of a level count the same there, so that sums
    over levels do for sums over bins. Infinity where the window is empty.
    """
    counts = counts.double()
    total = counts.sum(1, keepdim=True)
    ends = starts + widths
    steps = torch.arange(levels + 1, device=counts.device)
    edges = starts.unsqueeze(1) + (steps * widths.unsqueeze(1) + levels - 1) // levels
    cumulative = F.pad(counts.cumsum(1), (1, 0))
    inside = cumulative[:, edges].diff(dim=2)  # (channels, windows, levels)
    filled = F.pad((counts > 0).double().cumsum(1), (1, 0))[:, edges].diff(dim=2)
    mean = inside / filled.clamp(min=1)
    logs = mean.clamp(min=torch.finfo(mean.dtype).tiny).log_()  # of many times the speed of xlogy
    cross = (inside * logs).sum(2)
    own = F.pad(torch.special.xlogy(counts, counts).cumsum(1), (1, 0))
    own = own[:, ends] - own[:, starts]
    quantized = inside.sum(2)
    for outliers, edge, level in (
        (cumulative[:, starts], starts, 0),
        (total - cumulative[:, ends], ends - 1, -1),
    ):
        bin_count = counts[:, edge]
        own += torch.special.xlogy(bin_count + outliers, bin_count + outliers)
        own -= torch.special.xlogy(bin_count, bin_count)
        lone = (bin_count == 0) & (outliers > 0)
        cross += torch.special.xlogy(outliers, torch.where(lone, _EMPTY, mean[:, :, level]))
        quantized = quantized + lone * _EMPTY
    divergence = (own - cross) / total + (quantized / total).log()
    return divergence.masked_fill_(inside.sum(2) == 0, torch.inf)
