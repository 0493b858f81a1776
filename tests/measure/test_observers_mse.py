"""The squared error observer against brute force: on the values of a weight, on the histogram of activations."""

import ml_dtypes
import numpy as np
import pytest
import torch

from fxcompress.measure.observing.squared_error import MeanSquaredError
from fxcompress.nn import CodebookQuantizer, Float8Quantizer
from fxcompress.nn.levels import apot

SHRINKS = [percent / 100 for percent in range(21, 101)]


def squared_error(x, low, high, bits, symmetric):
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        top = 2 ** (bits - 1) - 1
        scale = max(-low, high) / top
        return float(((np.clip(np.round(x / scale), -top, top) * scale - x) ** 2).sum())
    scale = (high - low) / (2**bits - 1)
    zero = np.clip(np.round(-low / scale), 0, 2**bits - 1)
    return float(((((np.clip(np.round(x / scale) + zero, 0, 2**bits - 1)) - zero) * scale - x) ** 2).sum())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_get_the_best_of_the_grid(bits, symmetric, form):
    x = np.random.default_rng(bits).standard_t(3, size=(3, 500)).astype(np.float32)
    observer = MeanSquaredError()
    observer.observe(torch.from_numpy(x))
    low, high = observer.range_for(form(bits, symmetric=symmetric))
    for row, found_low, found_high in zip(x.astype(np.float64), low.tolist(), high.tolist(), strict=True):
        errors = [squared_error(row, k * row.min(), k * row.max(), bits, symmetric) for k in SHRINKS]
        assert squared_error(row, found_low, found_high, bits, symmetric) == pytest.approx(min(errors), rel=1e-4)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("relu", [True, False])
def test_activations_get_as_good_as_the_best(bits, symmetric, relu, form):
    x = np.random.default_rng(bits).standard_t(3, size=30_000).astype(np.float32)
    x = np.maximum(x, 0) if relu else x
    observer = MeanSquaredError()
    for part in np.array_split(x, 5):
        observer.observe(torch.from_numpy(part).view(1, -1))
    low, high = (end.item() for end in observer.range_for(form(bits, symmetric=symmetric)))
    x = x.astype(np.float64)
    errors = [squared_error(x, k * x.min(), k * x.max(), bits, symmetric) for k in SHRINKS]
    assert squared_error(x, low, high, bits, symmetric) <= 1.02 * min(errors)
    assert bits == 8 or min(errors) < 0.7 * errors[-1]


@pytest.mark.parametrize("batches", [1, 4])
def test_other_powers_of_errors(batches, form):
    """A larger exponent weighs the large errors of clipping more."""
    x = np.random.default_rng(0).standard_t(4, size=4000).astype(np.float32)
    tops = []
    for exponent in (1.0, 2.0, 3.0):
        observer = MeanSquaredError(exponent)
        for part in np.array_split(x, batches):
            observer.observe(torch.from_numpy(part).view(1, -1))
        _, high = observer.range_for(form(4, symmetric=False))
        ends = [np.array([k * x.min(), k * x.max()], np.float64) for k in SHRINKS]
        scales = [(one[1] - one[0]) / 15 for one in ends]
        zeros = [np.round(-one[0] / scale) for one, scale in zip(ends, scales, strict=True)]
        rounded = [(np.clip(np.round(x / s) + z, 0, 15) - z) * s for s, z in zip(scales, zeros, strict=True)]
        errors = [(np.abs(one - x) ** exponent).sum() for one in rounded]
        best = int(np.argmin(errors))
        assert high.item() == pytest.approx(SHRINKS[best] * x.max(), rel=0.02)
        tops.append(high.item())
    assert tops[0] < tops[1] < tops[2]


def test_what_comes_in_batches_is_not_kept():
    observer = MeanSquaredError()
    for _ in range(50):
        observer.observe(torch.randn(1, 10_000))
    held = [value for value in vars(observer).values() if isinstance(value, torch.Tensor)]
    assert not held


def test_powers_of_two(form):
    x = torch.tensor([[0.9, 0.5, -1.0, 0.25, 1.1]])
    observer = MeanSquaredError()
    observer.observe(x)
    low, high = observer.range_for(form(4, symmetric=True, power_of_two=True))
    scale = 2.0 ** np.ceil(np.log2(max(-low.item(), high.item()))) / 8

    def error(scale):
        return float(((np.clip(np.round(x.numpy() / scale), -7, 7) * scale - x.numpy()) ** 2).sum())

    assert error(scale) == pytest.approx(min(error(0.25), error(0.125), error(0.0625)))


def nearest(levels, x):
    return levels[np.abs(x[:, None] - levels).argmin(1)]


@pytest.mark.parametrize(
    ("quantizer", "levels"),
    [
        (CodebookQuantizer("apot", 4), apot(4).numpy()),
        (CodebookQuantizer("apot", 3), apot(3).numpy()),
        (
            Float8Quantizer("e4m3"),
            np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64) / 448,
        ),
    ],
    ids=["apot4", "apot3", "e4m3"],
)
def test_other_levels_than_even_ones(quantizer, levels):
    x = np.random.default_rng(0).standard_t(3, size=(3, 400)).astype(np.float32)
    observer = MeanSquaredError()
    observer.observe(torch.from_numpy(x))
    low, high = observer.range_for(quantizer)
    levels = np.unique(levels[np.isfinite(levels)])
    for row, found_low, found_high in zip(x.astype(np.float64), low.tolist(), high.tolist(), strict=True):
        tops = [k * np.abs(row).max() for k in SHRINKS]
        errors = [np.square(nearest(levels * top, row) - row).sum() for top in tops]
        top = max(-found_low, found_high)
        assert np.square(nearest(levels * top, row) - row).sum() == pytest.approx(min(errors), rel=1e-4)
