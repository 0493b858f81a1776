"""The entropy observer against the method written plainly in numpy, one threshold and one bin after the other."""

import numpy as np
import pytest
import torch

from fxcompress.measure.observing.entropy import Entropy, divergences

BINS = 2048


def plain_divergence(window, below, above, levels):
    """Return KL(P || Q) for one window of a histogram and what lies on both sides of it."""
    seen = window.astype(np.float64).copy()
    seen[0] += below
    seen[-1] += above
    quantized = np.zeros(len(window))
    level = np.arange(len(window)) * levels // len(window)
    for one in range(levels):
        inside = (level == one) & (window > 0)
        if inside.any():
            quantized[inside] = window[level == one].sum() / inside.sum()
    if quantized.sum() == 0:
        return np.inf
    quantized[(quantized == 0) & (seen > 0)] = 1e-4
    p, q = seen / seen.sum(), quantized / quantized.sum()
    some = p > 0
    return float((p[some] * np.log(p[some] / q[some])).sum())


def plain_threshold(x, levels, both):
    """Return the best threshold in bins and the width of a bin."""
    largest = np.abs(x).max()
    top = 2.0 ** (np.floor(np.log2(largest)) + 1)
    width = top / BINS
    if both:
        counts, _ = np.histogram(x, bins=2 * BINS, range=(-top, top))
    else:
        counts, _ = np.histogram(np.abs(x), bins=BINS, range=(0, top))
    best, least = None, np.inf
    last = int(largest / width) + 1
    for i in range(-(-levels // 2) if both else levels, last + 1):
        if i != last and i % (1 if i < 256 else 2 if i < 512 else 4 if i < 1024 else 8):
            continue
        start, end = (BINS - i, BINS + i) if both else (0, i)
        found = plain_divergence(counts[start:end], counts[:start].sum(), counts[end:].sum(), levels)
        if found <= least + 1e-12:
            best, least = i, min(found, least)
    return best, width


def data(kind):
    random = np.random.default_rng(3)
    if kind == "normal":
        return random.normal(size=10_000)
    if kind == "heavy tails":
        return random.standard_t(2.5, size=10_000)
    if kind == "one-sided":
        return np.maximum(random.laplace(size=10_000), 0)
    return -(np.abs(random.normal(size=10_000)) ** 2) - 1e-3


@pytest.mark.parametrize("kind", ["normal", "heavy tails", "one-sided", "negative"])
@pytest.mark.parametrize(("bits", "symmetric"), [(7, True), (4, True), (5, False), (3, False)])
def test_threshold(kind, bits, symmetric, form):
    x = data(kind).astype(np.float32)
    observer = Entropy()
    for part in np.array_split(x, 3):
        observer.observe(torch.from_numpy(part).view(1, -1))
    low, high = observer.range_for(form(bits, symmetric=symmetric))
    both = not symmetric and kind in ("normal", "heavy tails")
    best, width = plain_threshold(x.astype(np.float64), 2 ** (bits - 1) if symmetric else 2**bits - 1, both)
    assert low.item() == pytest.approx(max(-best * width, x.min()))
    assert high.item() == pytest.approx(min(best * width, x.max()))
    if kind == "heavy tails":
        assert best * width < np.abs(x).max() / 2  # something was clipped


def test_divergences_of_windows():
    random = np.random.default_rng(0)
    counts = random.poisson(2, size=(3, 64)) * random.integers(0, 2, size=(3, 64))
    starts, widths = np.array([0, 0, 5, 20, 24]), np.array([64, 9, 16, 30, 16])
    found = divergences(*map(torch.from_numpy, (counts, starts, widths)), 5).numpy()
    for row, answers in zip(counts, found, strict=True):
        for start, width, answer in zip(starts, widths, answers, strict=True):
            end = start + width
            wanted = plain_divergence(row[start:end], row[:start].sum(), row[end:].sum(), 5)
            assert answer == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_outliers_are_in_the_last_bin_of_what_was_seen_only():
    counts = torch.tensor([[4, 4, 4, 4, 0, 0, 0, 16]])
    (found,) = divergences(counts, torch.tensor([0]), torch.tensor([4]), 4)[0].tolist()
    p, q = np.array([4, 4, 4, 20]) / 32, np.full(4, 0.25)
    assert found == pytest.approx((p * np.log(p / q)).sum())


def test_channels_are_searched_each_on_its_own(form):
    x = np.stack([data("normal"), 50 * data("heavy tails"), data("one-sided")]).astype(np.float32)
    whole = Entropy()
    whole.observe(torch.from_numpy(x))
    low, high = whole.range_for(form(6))
    for row, one_low, one_high in zip(x, low, high, strict=True):
        alone = Entropy()
        alone.observe(torch.from_numpy(row).view(1, -1))
        assert alone.range_for(form(6)) == (one_low, one_high)


def test_more_levels_than_bins_clip_nothing(form):
    observer = Entropy()
    observer.observe(torch.from_numpy(data("heavy tails")).view(1, -1))
    assert observer.range_for(form(16)) == observer.range()


def test_a_quantizer_without_symmetry_is_symmetric(form):
    class Other:
        bits = 4

    observer = Entropy()
    observer.observe(torch.from_numpy(data("one-sided")).view(1, -1))
    assert observer.range_for(Other()) == observer.range_for(form(4, symmetric=True))
    assert observer.range_for(Other()) != observer.range_for(form(4, symmetric=False))
