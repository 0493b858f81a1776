"""ACIQ against the published constants, and against brute force on what was seen."""

import math

import numpy as np
import pytest
import torch

from fxcompress.measure.observing.aciq import Aciq, optimal_clip

# Banner et al. 2019: clipping values for 1 to 9 bits
LAPLACE = [1.863, 2.831, 3.897, 5.029, 6.205, 7.413, 8.646, 9.897, 11.163]
GAUSS = [1.240, 1.711, 2.152, 2.559, 2.936, 3.287, 3.615, 3.924, 4.216]


@pytest.mark.parametrize(("prior", "table"), [("laplace", LAPLACE), ("gauss", GAUSS)])
def test_published_constants(prior, table):
    assert [round(optimal_clip(bits, prior), 3) for bits in range(1, 10)] == table


@pytest.mark.parametrize("bits", [2, 5, 12, 16])
def test_no_other_clip_costs_less(bits):
    a = np.linspace(0.5, 30, 200_000)
    erfc = np.array([math.erfc(value / math.sqrt(2)) for value in a[::20]])
    laplace = 2 * np.exp(-a) + a**2 / (3 * 4.0**bits)
    assert optimal_clip(bits, "laplace") == pytest.approx(a[laplace.argmin()], abs=1e-3)
    a = a[::20]
    gauss = (a**2 + 1) * erfc + a**2 / (3 * 4.0**bits) - math.sqrt(2 / math.pi) * a * np.exp(-(a**2) / 2)
    assert optimal_clip(bits, "gauss") == pytest.approx(a[gauss.argmin()], abs=5e-3)


def seen(x, prior):
    observer = Aciq(prior)
    for part in np.array_split(x.astype(np.float32), 4):
        observer.observe(torch.from_numpy(part).view(1, -1))
    return observer


@pytest.mark.parametrize(("prior", "table"), [("laplace", LAPLACE), ("gauss", GAUSS)])
@pytest.mark.parametrize("bits", [2, 4])
def test_two_sided(prior, table, bits, form):
    x = np.random.default_rng(bits).normal(0.7, 2, size=50_000)
    low, high = seen(x, prior).range_for(form(bits))
    spread = np.abs(x - x.mean()).mean() if prior == "laplace" else x.std()
    clip = table[bits - 1] * spread
    assert low.item() == pytest.approx(max(x.mean() - clip, x.min()), rel=2e-3)
    assert high.item() == pytest.approx(min(x.mean() + clip, x.max()), rel=2e-3)


@pytest.mark.parametrize(("prior", "table"), [("laplace", LAPLACE), ("gauss", GAUSS)])
@pytest.mark.parametrize(("symmetric", "column"), [(False, 4), (True, 3)])
def test_after_relu_an_affine_grid_is_one_bit_finer(prior, table, symmetric, column, form):
    x = np.maximum(np.random.default_rng(5).laplace(size=100_000), 0)
    low, high = seen(x, prior).range_for(form(4, symmetric=symmetric))
    spread = np.abs(x - x.mean()).mean() if prior == "laplace" else x.std()
    assert low.item() == 0.0
    assert high.item() == pytest.approx(x.mean() + table[column] * spread, rel=2e-3)


def test_the_range_is_part_of_what_was_seen(form):
    x = np.random.default_rng(0).uniform(-1, 1, size=1000).astype(np.float32)
    low, high = seen(x, "laplace").range_for(form(8))
    assert (low.item(), high.item()) == (x.min(), x.max())


@pytest.mark.parametrize(("prior", "draw"), [("laplace", "laplace"), ("gauss", "normal")])
def test_it_rounds_with_less_error_than_any_other_range_around_the_mean(prior, draw, form):
    x = getattr(np.random.default_rng(1), draw)(size=100_000)
    _, high = seen(x, prior).range_for(form(4))

    def error(clip):
        step = 2 * clip / 15
        return float(((np.rint(np.clip(x, -clip, clip) / step + 7.5) - 7.5) * step - x).__pow__(2).mean())

    found = error(high.item())
    assert found < 1.03 * min(error(factor * high.item()) for factor in np.linspace(0.3, 1.8, 60))
    assert found < 0.5 * error(np.abs(x).max())
