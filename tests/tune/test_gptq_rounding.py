"""round_columns: the levels of a dense computation written plainly, whatever the blocks and the order."""

import copy

import numpy as np
import pytest
import torch

from fxcompress.tune.gptq_rounding import Grid, factored, round_columns
from tests.tune.obq import correlated, nearest, plain


def problem(rows=6, columns=20, blocks=1, high=3):
    """Return weights, Hessians and the grid of calibration, one scale for each row."""
    weight = torch.randn(blocks, rows, columns, generator=torch.Generator().manual_seed(1))
    inputs = torch.stack([correlated(columns, seed=seed) for seed in range(blocks)])
    scale = weight.abs().amax(2, keepdim=True) / high
    grid = Grid(scale, torch.zeros_like(scale), columns, -high, high, symmetric=True, power_of_two=False)
    return weight, inputs.mT @ inputs, grid


def rounded(weight, hessian, grid, **options):
    taken = {name: options.pop(name) for name in ("damping", "act_order") if name in options}
    factor = factored(hessian, **{"damping": 0.01, "act_order": False} | taken)
    return round_columns(weight, factor, copy.deepcopy(grid), **{"block_size": 8} | options)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("damping", [0.01, 0.5])
def test_codes_of_the_dense_computation(act_order, damping):
    weight, hessian, grid = problem()
    scale = grid.scale[0, :, 0].double().numpy()
    order = np.argsort(-np.diag(hessian[0].numpy())) if act_order else None
    expected = plain(weight[0].numpy(), hessian[0].numpy(), nearest(scale), damping=damping, order=order)
    found = rounded(weight, hessian, grid, act_order=act_order, damping=damping)[0].numpy()
    assert np.array_equal(np.round(found / scale[:, None]), np.round(expected / scale[:, None]))
    assert (np.round(found / scale[:, None]) != np.round(weight[0].numpy() / scale[:, None])).any()


@pytest.mark.parametrize("act_order", [False, True])
def test_blocks_are_rounded_each_on_its_own(act_order):
    weight, hessian, grid = problem(blocks=3)
    together = rounded(weight, hessian, grid, act_order=act_order)
    for index in range(3):
        one = slice(index, index + 1)
        alone = Grid(grid.scale[one], grid.zero_point[one], 20, -3, 3, symmetric=True, power_of_two=False)
        torch.testing.assert_close(together[one], rounded(weight[one], hessian[one], alone, act_order=act_order))


def ranges(rows):
    return rows.amin(1), rows.amax(1)


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("act_order", [False, True])
def test_block_size_changes_nothing(act_order, groups):
    weight, hessian, grid = problem()
    if groups:
        grid.width, grid.scale, grid.zero_point = 6, grid.scale.repeat(1, 1, 4), grid.zero_point.repeat(1, 1, 4)
        grid.ranges = None if act_order else ranges
    one_by_one = rounded(weight, hessian, grid, act_order=act_order, block_size=1)
    for block_size in (3, 7, 20, 64):
        assert torch.equal(rounded(weight, hessian, grid, act_order=act_order, block_size=block_size), one_by_one)


@pytest.mark.parametrize("masked", [False, True])
def test_groups_take_the_range_of_the_weights_as_they_are_then(masked):
    weight, hessian, grid = problem()
    weight[:, :, 10:] *= 0.05  # here counts what the columns before pass on
    grid.width, grid.scale, grid.zero_point = 5, grid.scale.repeat(1, 1, 4), grid.zero_point.repeat(1, 1, 4)
    grid.ranges = ranges
    kept = torch.rand(weight.shape, generator=torch.Generator().manual_seed(2)) > (0.7 if masked else 0)
    kept[:, :, ::5] = True  # something of each group
    scales = np.zeros((6, 4))

    def begin(column, now):
        if column % 5 == 0:
            group = np.abs(now * kept[0].numpy())[:, column : column + 5]
            scales[:, column // 5] = (group.max(1) / 3).astype(np.float32)

    def quantize(x, column):
        return nearest(scales[:, column // 5])(x, column) * kept[0, :, column].numpy()

    expected = plain((weight * kept)[0].numpy(), hessian[0].numpy(), quantize, begin=begin)
    used = copy.deepcopy(grid)
    found = round_columns(
        weight * kept, factored(hessian, damping=0.01, act_order=False), used, block_size=8, kept=kept
    )
    np.testing.assert_allclose(used.scale[0].numpy(), scales, rtol=1e-6)
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-6)
    assert np.abs(scales[:, 3] / ((weight * kept)[0, :, 15:].abs().amax(1).numpy() / 3) - 1).max() > 0.05


def test_masked_weights_become_zero_and_the_others_make_up_for_them():
    weight, hessian, grid = problem()
    kept = torch.rand(weight.shape, generator=torch.Generator().manual_seed(2)) > 0.4
    scale = grid.scale[0, :, 0].double().numpy()

    def quantize(x, column):
        return nearest(scale)(x, column) * kept[0, :, column].numpy()

    expected = plain((weight * kept)[0].numpy(), hessian[0].numpy(), quantize)
    found = rounded(weight * kept, hessian, grid, kept=kept)
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-9)
    assert (found[~kept] == 0).all()


def test_inputs_that_are_always_zero():
    weight, hessian, grid = problem()
    dead = torch.zeros_like(weight[0, 0], dtype=torch.bool)
    dead[[0, 3, 19]] = True
    live = hessian[:, ~dead][:, :, ~dead]
    hessian = torch.zeros_like(hessian).masked_scatter(~dead[:, None] & ~dead, live)
    found = rounded(weight, hessian, grid)
    scale = grid.scale[0].double().numpy()
    expected = nearest(scale)(weight[0].double().numpy(), 0).astype(np.float32)
    assert np.array_equal(found[0, :, dead].numpy(), expected[:, dead])
    assert np.array_equal(rounded(weight, torch.zeros_like(hessian), grid)[0].numpy(), expected)


def test_a_hessian_that_is_not_positive_definite():
    weight, hessian, grid = problem()
    with pytest.raises(ValueError, match=r"is not positive definite with damping 0\.01; raise damping"):
        rounded(weight, hessian - 50 * torch.eye(20) * hessian.diagonal(dim1=1, dim2=2).mean(), grid)
