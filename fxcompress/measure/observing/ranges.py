"""Observers that only follow the smallest and the largest value."""

import torch
from torch import Tensor


def ends(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest value of each row; raises ValueError where float32 does not hold one."""
    if len(x) > 1:
        low, high = torch.aminmax(x, dim=1)
    else:  # over all of a tensor it is many times as fast as along an axis
        low, high = (end.view(1) for end in torch.aminmax(x))
    if not (low.float().isfinite() & high.float().isfinite()).all():
        finite = (low.isfinite() & high.isfinite()).all()
        raise ValueError(f"holds {'numbers too large for float32, as scales are' if finite else 'NaN or infinity'}")
    return low, high


class MinMax:
    """The smallest and the largest value seen."""

    def __init__(self) -> None:
        self._low: Tensor | None = None
        self._high: Tensor | None = None

    def observe(self, x: Tensor) -> None:
        """Widen the range to hold `x`."""
        low, high = ends(x)
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
        batch = torch.stack(ends(x)).to(torch.promote_types(x.dtype, torch.float32))
        self._ends = batch if self._ends is None else torch.lerp(self._ends, batch, self._fade)

    def range(self) -> tuple[Tensor, Tensor]:
        """Return the ends."""
        assert self._ends is not None, "observe something first"
        low, high = self._ends
        return low, high
