"""Observers against numpy, over batches that come one by one."""

import numpy as np
import pytest
import torch

from fxcompress.measure.observers import MeanSquaredError, MinMax, MovingAverage, Percentile
from fxcompress.nn import Quantizer

BINS = 8192


def observed(observer, batches):
    for batch in batches:
        observer.observe(batch)
    return observer.range()


def random_batches(seed, channels=1):
    """Return batches whose spread grows and shrinks, by factors that are no powers of two."""
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(channels, 400, generator=generator) for scale in (1.0, 0.01, 37.0, 3.0, 1e5, 1.0)]


def percentile(x, q):
    """Return the smallest magnitude that at least q percent of the magnitudes do not exceed."""
    return np.percentile(np.abs(x), q, method="inverted_cdf")


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99])
def test_moving_average(momentum):
    batches = random_batches(1, channels=3)
    low, high = observed(MovingAverage(momentum), batches)
    wanted = None
    for batch in batches:
        ends = np.stack([batch.numpy().astype(np.float64).min(1), batch.numpy().astype(np.float64).max(1)])
        wanted = ends if wanted is None else momentum * wanted + (1 - momentum) * ends
    np.testing.assert_allclose(torch.stack([low, high]).numpy(), wanted, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_moving_average_is_that_of_torch():
    batches = random_batches(2)
    theirs = torch.ao.quantization.MovingAverageMinMaxObserver(averaging_constant=0.05)
    for batch in batches:
        theirs(batch)
    low, high = observed(MovingAverage(0.95), batches)
    torch.testing.assert_close((low[0], high[0]), (theirs.min_val, theirs.max_val), rtol=1e-5, atol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_minmax(channels):
    batches = random_batches(0, channels)
    low, high = observed(MinMax(), batches)
    whole = torch.cat(batches, 1).numpy()
    assert np.array_equal(low.numpy(), whole.min(1))
    assert np.array_equal(high.numpy(), whole.max(1))


@pytest.mark.parametrize("q", [50.5, 90, 99, 99.9, 99.99, 100])
@pytest.mark.parametrize("channels", [1, 3])
def test_percentile_within_a_bin(q, channels):
    batches = random_batches(1, channels)
    low, high = observed(Percentile(q), batches)
    for channel, x in enumerate(torch.cat(batches, 1).double().numpy()):
        exact, width = percentile(x, q), 2 * np.abs(x).max() / BINS
        for end, seen in ((-low[channel].item(), -x.min()), (high[channel].item(), x.max())):
            least, most = min(exact, seen), min(exact + width, seen)
            assert least * (1 - 1e-6) <= end <= most * (1 + 1e-6)


def test_percentile_does_not_depend_on_the_batches():
    x = torch.randn(1, 5000, generator=torch.Generator().manual_seed(2))
    x, _ = x.abs().sort(descending=True)  # the largest value comes first: no merging of bins
    assert observed(Percentile(99), x.split(100, 1)) == observed(Percentile(99), [x])


def test_percentile_of_one_outlier():
    x = torch.cat([torch.linspace(-1, 1, 9999), torch.tensor([100.0])]).view(1, -1)
    low, high = observed(Percentile(99.9), [x])
    assert low.item() == -1.0
    assert high.item() == pytest.approx(0.999, abs=2 * 100 / BINS)


@pytest.mark.parametrize("observer", [MinMax, Percentile])
@pytest.mark.parametrize(
    ("values", "ends"),
    [([0.0] * 5, (0.0, 0.0)), ([3.0] * 5, (3.0, 3.0)), ([-3.0, -1.0], (-3.0, -1.0)), ([1e-40], (1e-40, 1e-40))],
    ids=["zeros", "constant", "negative", "tiny"],
)
def test_special_values(observer, values, ends):
    low, high = observed(observer(), [torch.tensor([values])])
    assert (low.item(), high.item()) == (pytest.approx(ends[0], rel=1e-6), pytest.approx(ends[1], rel=1e-6))


def test_zeros_first():
    low, high = observed(Percentile(99), [torch.zeros(1, 10), torch.ones(1, 990)])
    assert (low.item(), high.item()) == (0.0, 1.0)
    assert observed(Percentile(99), [torch.zeros(1, 1000), torch.ones(1, 1)])[1].item() < 2 / BINS


def test_counts_beyond_single_precision():
    # of 2^25 + 6 values all but one are small; float32 takes their number for 2^25 + 8, and the share for 1
    observer = Percentile(100 * (1 - 2.0**-25))
    for _ in range(2**5):
        observer.observe(torch.full((1, 2**20), 0.1))
    observer.observe(torch.tensor([[0.1] * 5 + [1.0]]))
    assert observer.range()[1].item() == pytest.approx(0.1, abs=2 / BINS)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_mse_finds_the_best_of_its_grid_by_brute_force(bits, symmetric):
    x = np.random.default_rng(bits).standard_t(3, size=(3, 500)).astype(np.float32)
    observer = MeanSquaredError()
    observer.observe(torch.from_numpy(x))
    low, high = observer.range_for(Quantizer(bits, symmetric=symmetric, axis=0, channels=3))
    for row, found_low, found_high in zip(x.astype(np.float64), low.tolist(), high.tolist(), strict=True):
        errors = {
            k: squared_error(row, k / 100 * row.min(), k / 100 * row.max(), bits, symmetric) for k in range(21, 101)
        }
        found = squared_error(row, found_low, found_high, bits, symmetric)
        assert found == pytest.approx(min(errors.values()), rel=1e-4)


def squared_error(x: np.ndarray, low: float, high: float, bits: int, symmetric: bool) -> float:
    if symmetric:
        top = 2 ** (bits - 1) - 1
        scale = max(-low, high) / top
        return float(((np.clip(np.round(x / scale), -top, top) * scale - x) ** 2).sum())
    scale = (high - low) / (2**bits - 1)
    zero = np.clip(np.round(-low / scale), 0, 2**bits - 1)
    return float(((((np.clip(np.round(x / scale) + zero, 0, 2**bits - 1)) - zero) * scale - x) ** 2).sum())
