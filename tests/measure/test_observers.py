"""Observers of ends and percentiles against numpy, over batches that come one by one."""

import numpy as np
import pytest
import torch

from fxcompress.measure.observers import OBSERVERS
from fxcompress.measure.observing.percentile import Percentile
from fxcompress.measure.observing.ranges import MovingAverage

BIN = 1 / 4096  # at most, of the largest magnitude


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


@pytest.mark.parametrize("name", ["minmax", "entropy", "mse", "aciq"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_was_seen(name, channels):
    batches = random_batches(0, channels)
    low, high = observed(OBSERVERS[name](), batches)
    whole = torch.cat(batches, 1).numpy()
    assert np.array_equal(low.numpy(), whole.min(1))
    assert np.array_equal(high.numpy(), whole.max(1))


@pytest.mark.parametrize("q", [50.5, 90, 99, 99.9, 99.99, 100])
@pytest.mark.parametrize("channels", [1, 3])
def test_percentile_within_a_bin(q, channels):
    batches = random_batches(1, channels)
    low, high = observed(Percentile(q), batches)
    for channel, x in enumerate(torch.cat(batches, 1).double().numpy()):
        exact, width = percentile(x, q), BIN * np.abs(x).max()
        for end, seen in ((-low[channel].item(), -x.min()), (high[channel].item(), x.max())):
            least, most = min(exact, seen), min(exact + width, seen)
            assert least * (1 - 1e-6) <= end <= most * (1 + 1e-6)


@pytest.mark.parametrize("name", ["minmax", "percentile", "entropy", "aciq"])
def test_batches_and_their_order_do_not_matter(name, form):
    batches = random_batches(2)
    whole = torch.cat(batches, 1)
    answers = []
    for order in (batches, batches[::-1], [whole], [*whole.split(7, 1)]):
        observer = OBSERVERS[name]()
        ends = observed(observer, order)
        answers.append(observer.range_for(form(8)) if hasattr(observer, "range_for") else ends)
    assert all(answer == answers[0] for answer in answers)


def test_percentile_of_one_outlier():
    x = torch.cat([torch.linspace(-1, 1, 9999), torch.tensor([100.0])]).view(1, -1)
    low, high = observed(Percentile(99.9), [x])
    assert low.item() == -1.0
    assert high.item() == pytest.approx(0.999, abs=100 * BIN)


def test_percentile_with_an_outlier_past_all_measure():
    observer = Percentile(99)
    observer.observe(torch.linspace(-1, 1, 1000).view(1, -1))
    observer.observe(torch.tensor([[1e30]]))
    low, high = observer.range()
    assert low.item() == -1.0
    assert 1.0 <= high.item() <= 1e30 * BIN


@pytest.mark.parametrize("name", [name for name in OBSERVERS if name != "moving_average"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ([0.0] * 5, (0.0, 0.0)),
        ([3.0] * 5, (3.0, 3.0)),
        ([-3.0] * 5, (-3.0, -3.0)),
        ([1e-40] * 3, (1e-40, 1e-40)),
        ([7.0], (7.0, 7.0)),
        ([3.4e38] * 2, (3.4e38, 3.4e38)),
    ],
    ids=["zeros", "constant", "negative", "denormal", "single", "huge"],
)
def test_a_constant(name, symmetric, values, ends, form):
    observer = OBSERVERS[name]()
    low, high = observed(observer, [torch.tensor([values])])
    assert (low.item(), high.item()) == (pytest.approx(ends[0], rel=1e-6), pytest.approx(ends[1], rel=1e-6))
    if hasattr(observer, "range_for"):
        low, high = observer.range_for(form(8, symmetric=symmetric))
        assert (low.item(), high.item()) == (pytest.approx(ends[0], rel=1e-3), pytest.approx(ends[1], rel=1e-3))


def test_zeros_first():
    low, high = observed(Percentile(99), [torch.zeros(1, 10), torch.ones(1, 990)])
    assert (low.item(), high.item()) == (0.0, 1.0)
    assert observed(Percentile(99), [torch.zeros(1, 1000), torch.ones(1, 1)])[1].item() <= BIN


def test_counts_beyond_single_precision():
    # of 2^25 + 6 values all but one are small; float32 takes their number for 2^25 + 8, and the share for 1
    observer = Percentile(100 * (1 - 2.0**-25))
    for _ in range(2**5):
        observer.observe(torch.full((1, 2**20), 0.1))
    observer.observe(torch.tensor([[0.1] * 5 + [1.0]]))
    assert observer.range()[1].item() == pytest.approx(0.1, abs=BIN)
