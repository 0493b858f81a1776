"""The histogram: exact bins, exact counts and bounded memory, against numpy in whole numbers."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from fxcompress.measure.observing.histogram import BINS, Histogram


def histogram(*batches):
    found = Histogram()
    for batch in batches:
        found.observe(batch)
    return found


def bins_of(values, largest):
    """Return the bin of each value, by exact fractions."""
    top = Fraction(2) ** math.frexp(largest)[1]
    return [math.floor(Fraction(float(value)) * BINS / top) + BINS for value in values]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_value_is_in_its_bin(dtype):
    x = torch.randn(4, 300, generator=torch.Generator().manual_seed(0)).mul_(torch.tensor([[1], [0.1], [7], [90]]))
    x = x.to(dtype)
    x[:, :9] = torch.tensor([-3.0, -2.0, -1.0, -0.5, 0.0, 2**-10, 0.25, 1.0, 3.0])
    found = histogram(*x.split(50, 1))
    for counts, row, width in zip(found.counts.numpy(), x.double().numpy(), found.width.tolist(), strict=True):
        largest = np.abs(row).max()
        assert width == 2.0 ** math.frexp(largest)[1] / BINS
        wanted = np.bincount(bins_of(row, largest), minlength=2 * BINS)
        assert np.array_equal(counts, wanted)


@pytest.mark.parametrize("value", [1.0, -1.0, 2.0**-60, 1.5, 1e-30, 100.0])
def test_a_value_next_to_the_edge_of_a_bin(value):
    width = 2.0 ** math.frexp(value)[1] / BINS
    edges = np.float32([k * width for k in (-4096, -4095, -1, 0, 1, 2, 17, 4095, 4096)])
    around = np.unique(np.float32([edges, np.nextafter(edges, -np.inf), np.nextafter(edges, np.inf)]))
    around = around[np.abs(around) <= abs(value)]
    row = np.append(around, np.float32(value))
    counts = histogram(torch.from_numpy(row).view(1, -1)).counts[0].numpy()
    assert np.array_equal(counts, np.bincount(bins_of(row, np.abs(row).max()), minlength=2 * BINS))


def test_memory_is_bounded_whatever_comes():
    found = histogram(torch.full((1, 3), 1e-40))
    for exponent in range(-38, 39, 4):
        found.observe(torch.full((1, 1000), -(10.0**exponent)))
    assert found.counts.shape == (1, 2 * BINS)
    assert found.counts.sum().item() == 20003
    held = [value for value in vars(found).values() if isinstance(value, torch.Tensor)]
    assert sum(value.numel() for value in held) <= 2 * BINS + 3


def test_more_values_than_are_counted_at_a_time():
    x = torch.rand(1, 300_000, generator=torch.Generator().manual_seed(1))
    counts = histogram(x).counts[0, BINS:].numpy()
    wanted = np.bincount((x[0].double().numpy() * BINS).astype(np.int64), minlength=BINS)  # the top is 1
    assert np.array_equal(counts, wanted)


def test_magnitudes_and_centers():
    found = histogram(torch.tensor([[-0.75, -0.75, 0.75, 0.1]]))
    three_quarters = BINS * 3 // 4
    magnitudes = found.magnitudes()[0]
    assert magnitudes[three_quarters] == 1
    assert magnitudes[three_quarters - 1] == 2  # a bin of magnitudes of negative values has its upper end
    centers = found.centers()[0]
    assert centers[BINS].item() == 0.5 / BINS
    assert centers[0].item() == -1 + 0.5 / BINS
