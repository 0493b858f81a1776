"""Bit allocation across channels: wide channels get more bits, the mean stays as asked."""

from collections.abc import Sequence

import numpy as np

_MOST = 8
_ROUNDS = 64  # each halves the uncertainty of the target


def allocate_bits(spans: Sequence[float], mean_bits: float) -> list[int]:
    """Return bits from 0 to 8 for each channel so that their mean is as near to `mean_bits` as rounding allows.

    `spans` are the channels' ranges or deviations. With a budget of n 2^target levels in all, channel i gets a share
    that goes with span^(2/3), rounded to a power of two; `target` is tuned until the mean is met (Banner et al. 2019,
    section 4). A channel without span gets 0 bits. Raises ValueError where a span is negative or not finite, there is
    none, or `mean_bits` is not from 0 to 8.
    """
    values = np.asarray(spans, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(f"spans are one or more finite numbers from 0 on, not {spans!r}")
    if not 0 <= mean_bits <= _MOST:
        raise ValueError(f"mean_bits of {mean_bits!r} is not accepted; write a number from 0 to {_MOST}")
    if not values.any():
        return [0] * len(values)
    with np.errstate(divide="ignore"):
        share = np.log2(values / values.max()) * (2 / 3)  # of the widest channel, so that no power overflows
    share += np.log2(len(values)) - np.log2(np.exp2(share).sum())
    low, high = -share[np.isfinite(share)].max() - 1, _MOST + 1 - share[np.isfinite(share)].min()
    for _ in range(_ROUNDS):
        target = (low + high) / 2
        low, high = (target, high) if _rounded(share + target).mean() <= mean_bits else (low, target)
    below, above = _rounded(share + low), _rounded(share + high)
    return _fill(below, above, round(mean_bits * len(values))).astype(int).tolist()


def _rounded(bits: np.ndarray) -> np.ndarray:
    return np.rint(bits).clip(0, _MOST)


def _fill(below: np.ndarray, above: np.ndarray, total: int) -> np.ndarray:
    """Return the lower allocation with as many of the channels that are about to rise as the total has room for."""
    rising = np.flatnonzero(above > below)
    room = max(0, total - int(below.sum()))
    result = below.copy()
    result[rising[:room]] += 1
    return result
