"""The learned rounding against the formulas of AdaRound, written out in numpy."""

import numpy as np
import pytest
import torch

from fxcompress.nn import UniformQuantizer
from fxcompress.tune.soft_rounding import LearnedScale, SoftRounding


def quantizer_of(weight, *, bits=4, symmetric=True):
    quantizer = UniformQuantizer(bits, symmetric=symmetric, axis=0, channels=len(weight))
    rows = weight.flatten(1)
    quantizer.set_range(rows.amin(1), rows.amax(1))
    return quantizer


def rectified_sigmoid(v):
    return np.clip(1.2 / (1 + np.exp(-v)) - 0.1, 0, 1)


@pytest.fixture
def weight():
    return torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("symmetric", [True, False])
def test_it_starts_as_the_weight_itself(weight, symmetric):
    """As far as the grid reaches: rounding the zero point moves its ends."""
    quantizer = quantizer_of(weight, symmetric=symmetric)
    scale, zero_point = (part.view(-1, 1, 1, 1) for part in (quantizer.scale, quantizer.zero_point))
    inside = weight.clamp((quantizer.low - zero_point) * scale, (quantizer.high - zero_point) * scale)
    torch.testing.assert_close(SoftRounding(quantizer, weight)(), inside, rtol=1e-5, atol=1e-6)


def test_values_and_penalty_are_the_formulas(weight):
    quantizer = quantizer_of(weight)
    rounding = SoftRounding(quantizer, weight)
    with torch.no_grad():
        rounding.v.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    scale = quantizer.scale.double().numpy()[:, None, None, None]
    v = rounding.v.detach().double().numpy()
    h = rectified_sigmoid(v)
    floor = np.floor(weight.numpy() / quantizer.scale.numpy()[:, None, None, None])  # in float32, as it is done
    expected = scale * np.clip(floor + h, -7, 7)
    np.testing.assert_allclose(rounding().detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    for beta in (20.0, 5.5, 2.0):
        expected = (1 - np.abs(2 * h - 1) ** beta).sum()
        np.testing.assert_allclose(rounding.penalty(beta).item(), expected, rtol=1e-4)


def test_the_end_is_on_the_grid_up_where_v_is_positive(weight):
    quantizer = quantizer_of(weight)
    rounding = SoftRounding(quantizer, weight)
    with torch.no_grad():
        rounding.v.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)))
    scale = quantizer.scale.numpy()[:, None, None, None]
    codes = np.clip(np.floor(weight.numpy() / scale) + (rounding.v.detach().numpy() >= 0), -7, 7)
    np.testing.assert_array_equal(rounding.hard().detach().numpy(), codes.astype(np.float32) * scale)
    torch.testing.assert_close(quantizer(rounding.hard().detach()), rounding.hard().detach(), rtol=0, atol=0)


def test_zeros_stay_zero(weight):
    weight[0] = 0
    weight[1, 0] = 0
    rounding = SoftRounding(quantizer_of(weight, symmetric=False), weight)
    with torch.no_grad():
        rounding.v.fill_(5)
    assert not rounding.hard()[weight == 0].any()
    assert not rounding()[weight == 0].any()


def test_the_gradient_of_a_learned_scale_is_that_of_lsq():
    quantizer = UniformQuantizer(3, symmetric=False)
    quantizer.set_range(torch.tensor(-0.9), torch.tensor(1.9))
    learned = LearnedScale(quantizer)
    x = torch.tensor([-5.0, -0.37, 0.0, 0.61, 1.1, 9.0], requires_grad=True)
    slope = torch.tensor([1.0, 2.0, -1.0, 0.5, 3.0, -2.0])
    (learned(x) * slope).sum().backward()
    s, z = quantizer.scale.item(), quantizer.zero_point.item()
    steps = x.detach().numpy() / s
    inside = (np.round(steps) + z >= 0) & (np.round(steps) + z <= 7)
    by_scale = np.where(inside, np.round(steps) - steps, np.clip(np.round(steps) + z, 0, 7) - z)
    np.testing.assert_allclose(learned.log_ratio.grad.item(), s * (by_scale * slope.numpy()).sum(), rtol=1e-5)
    np.testing.assert_allclose(x.grad.numpy(), slope.numpy() * inside, rtol=1e-6)
    torch.testing.assert_close(learned(x), quantizer(x))
