"""allocate_bits: by hand, the mean as asked, and errors."""

import re

import numpy as np
import pytest

from fxcompress.measure.bit_allocation import allocate_bits


@pytest.mark.parametrize(
    ("spans", "mean", "bits"),
    [
        ([1, 1, 1, 1], 4, [4, 4, 4, 4]),
        ([8, 1], 4, [5, 3]),  # shares 4 : 1 of the levels are 2 bits apart
        ([1, 8, 64, 512], 4, [1, 3, 5, 7]),
        ([1, 512], 4, [1, 7]),
        ([0, 1, 1], 4, [0, 6, 6]),
        ([0.0, 0.0], 4, [0, 0]),
        ([1e-300, 1e300], 4, [0, 8]),
        ([1e-8, 1, 8], 5, [0, 7, 8]),  # the widest would have 9
    ],
)
def test_by_hand(spans, mean, bits):
    assert allocate_bits(spans, mean) == bits


@pytest.mark.parametrize("mean", [0, 1.5, 3, 4, 6.25, 8])
@pytest.mark.parametrize("seed", range(5))
def test_the_mean_is_as_asked(mean, seed):
    spans = np.random.default_rng(seed).lognormal(sigma=2, size=64)
    bits = np.array(allocate_bits(spans.tolist(), mean))
    assert bits.mean() == mean
    assert bits.min() >= 0
    assert bits.max() <= 8


def test_levels_go_with_the_two_thirds_power_of_the_span():
    spans = np.random.default_rng(0).uniform(1, 30, size=200)
    bits = np.array(allocate_bits(spans.tolist(), 4))
    # some target M' gives every bit-width as round(log2(n 2^M' s^(2/3) / sum s^(2/3)))
    levels = np.log2(len(spans) * spans ** (2 / 3) / (spans ** (2 / 3)).sum())
    assert (bits - levels - 0.5).max() <= (bits - levels + 0.5).min()


@pytest.mark.parametrize(
    ("spans", "mean", "message"),
    [
        ([], 4, "spans are one or more finite numbers from 0 on, not []"),
        ([1.0, -1.0], 4, "spans are one or more finite numbers from 0 on, not [1.0, -1.0]"),
        ([float("nan")], 4, "spans are one or more finite numbers from 0 on, not [nan]"),
        ([1.0], 9, "mean_bits of 9 is not accepted; write a number from 0 to 8"),
    ],
)
def test_errors(spans, mean, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        allocate_bits(spans, mean)
