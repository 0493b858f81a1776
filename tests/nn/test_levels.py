"""Level tables: APoT against the published base sets, k-means against a plain loop and against every partition."""

import itertools

import numpy as np
import pytest
import torch

from fxcompress.nn.levels import apot, kmeans, midpoints

BASE_SETS = {  # by magnitude bits: the terms that are added (Li et al. 2020, APoT)
    1: [[0, 1]],
    2: [[0, 1 / 2, 1 / 4, 1 / 8]],
    3: [[0, 1 / 2, 1 / 4, 1 / 16], [0, 1 / 8]],
    4: [[0, 1 / 2, 1 / 8, 1 / 32], [0, 1 / 4, 1 / 16, 1 / 64]],
    5: [[0, 1 / 2, 1 / 8, 1 / 64], [0, 1 / 4, 1 / 16, 1 / 128], [0, 1 / 32]],
    6: [[0, 1 / 2, 1 / 16, 1 / 128], [0, 1 / 4, 1 / 32, 1 / 256], [0, 1 / 8, 1 / 64, 1 / 512]],
}


@pytest.mark.parametrize("magnitude_bits", BASE_SETS)
def test_additive_powers_of_two(magnitude_bits):
    sums = np.array(sorted(sum(terms) for terms in itertools.product(*BASE_SETS[magnitude_bits])))
    magnitudes = sums / sums.max()
    expected = np.concatenate([-magnitudes[:0:-1], magnitudes])
    assert np.array_equal(apot(magnitude_bits + 1).numpy(), expected)


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_level_is_different(bits):
    levels = apot(bits)
    assert (levels.diff() > 0).all()
    assert levels.numel() == 2**bits - 1
    assert (levels[0], levels[levels.numel() // 2], levels[-1]) == (-1, 0, 1)


def plain_lloyd(values, count):
    """Iterate in numpy, looking at each value."""
    levels = np.linspace(values.min(), values.max(), count)
    pin = np.abs(levels).argmin() if (values == 0).any() else None
    if pin is not None:
        levels[pin] = 0
    for _ in range(1000):
        nearest = np.abs(values[:, None] - levels).argmin(1)
        new = np.array([values[nearest == k].mean() if (nearest == k).any() else levels[k] for k in range(count)])
        if pin is not None:
            new[pin] = 0
        if np.array_equal(new, levels):
            break
        levels = new
    return levels


@pytest.mark.parametrize("count", [4, 8, 16])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_against_a_plain_loop(count, zeros, seed):
    values = torch.randn(400, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if zeros:
        values[::3] = 0
    found = kmeans(values.view(20, 20), count)
    np.testing.assert_allclose(found.numpy(), plain_lloyd(values.numpy(), count), rtol=1e-9, atol=1e-12)
    assert (found == 0).any() == zeros


def error(values, levels):
    return (np.abs(values[:, None] - np.asarray(levels)).min(1) ** 2).sum()


def best_error(values, count):
    """Return the least squared error of all ways to cut the sorted values into `count` runs."""
    values = np.sort(values)
    cuts = itertools.combinations(range(1, len(values)), count - 1)
    parts = (np.split(values, cut) for cut in cuts)
    return min(sum(((part - part.mean()) ** 2).sum() for part in one) for one in parts)


@pytest.mark.parametrize("seed", range(10))
def test_the_best_partition_of_clusters(seed):
    rng = np.random.default_rng(seed)
    values = np.concatenate([center + 0.1 * rng.standard_normal(3) for center in (-3, -1, 1.2, 3)])
    found = kmeans(torch.from_numpy(values), 4)
    assert error(values, found) == pytest.approx(best_error(values, 4))


@pytest.mark.parametrize("seed", range(10))
def test_never_better_than_the_best_partition_and_never_worse_than_even_levels(seed):
    values = np.random.default_rng(seed).standard_normal(13)
    found = error(values, kmeans(torch.from_numpy(values), 4))
    assert best_error(values, 4) <= found * (1 + 1e-12)
    assert found <= error(values, np.linspace(values.min(), values.max(), 4))


@pytest.mark.parametrize("different", [1, 2, 7, 8])
def test_few_values_are_levels_themselves(different):
    values = torch.arange(different).double().repeat(5)
    found = kmeans(values, 8)
    assert found.tolist() == [*range(different), *[different - 1] * (8 - different)]


def test_adjacent_numbers_and_none():
    one = torch.tensor(1.0)
    values = torch.stack([one, torch.nextafter(one, 2 * one)])
    assert kmeans(values, 4)[:2].float().tolist() == values.tolist()
    assert kmeans(torch.zeros(0), 4).tolist() == [0.0] * 4


def test_many_equal_values_and_an_outlier_come_to_an_end():
    values = torch.cat([torch.full((1000,), 0.25), torch.randn(1000) * 1e-3, torch.tensor([1e30])])
    found = kmeans(values, 16)
    assert found.isfinite().all()
    assert (found.diff() >= 0).all()
    assert found[-1] == torch.tensor(1e30).double()


def test_midpoints():
    assert midpoints(torch.tensor([-1.0, 0.0, 4.0])).tolist() == [-0.5, 2.0]
