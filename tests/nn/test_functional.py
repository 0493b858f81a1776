"""The functions under the modules: folding against batch norm in float64, and kernels cut to their centre."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxcompress.nn.functional import central_kernel, folded_bias, folded_weight


def random_norm(channels, affine=True):
    norm = nn.BatchNorm1d(channels, affine=affine, dtype=torch.float64).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 3)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_folding_is_batch_norm(affine, bias):
    torch.manual_seed(0)
    layer, norm = nn.Linear(3, 5, bias=bias, dtype=torch.float64), random_norm(5, affine)
    weight = folded_weight(layer.weight, norm.weight, norm.running_var, norm.eps)
    shift = folded_bias(layer.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)
    x = torch.randn(7, 3, dtype=torch.float64)
    torch.testing.assert_close(F.linear(x, weight, shift), norm(layer(x)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_folding_a_transposed_convolution(groups):
    torch.manual_seed(0)
    layer = nn.ConvTranspose1d(6, 6, 3, groups=groups, dtype=torch.float64)
    norm = random_norm(6)
    weight = folded_weight(layer.weight, norm.weight, norm.running_var, norm.eps, axis=1)
    bias = folded_bias(layer.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)
    x = torch.randn(2, 6, 4, dtype=torch.float64)
    found = F.conv_transpose1d(x, weight, bias, groups=groups)
    torch.testing.assert_close(found, norm(layer(x)), rtol=1e-12, atol=1e-12)


def test_the_central_kernel():
    weight = torch.arange(25.0).view(1, 1, 5, 5)
    assert central_kernel(weight, 1).flatten().tolist() == [6, 7, 8, 11, 12, 13, 16, 17, 18]
    assert central_kernel(weight, 2).flatten().tolist() == [12]
