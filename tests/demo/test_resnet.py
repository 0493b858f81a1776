"""The residual network against the paper's counts and a plain computation of one block."""

import numpy as np
import pytest
import torch

from fxcompress.demo.resnet import Block, ResNet


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (56, 853_018)])
def test_parameter_count(depth, parameters):
    """0.27 and 0.85 million (He et al. 2016, table 6)."""
    assert sum(p.numel() for p in ResNet(depth).parameters()) == parameters


def test_names():
    names = {name for name, module in ResNet(20).named_modules() if not list(module.children())}
    blocks = {f"layer{group}.{block}" for group in (1, 2, 3) for block in range(3)}
    inner = {f"{block}.{name}" for block in blocks for name in ("conv1", "bn1", "conv2", "bn2")}
    assert names == {"conv1", "bn1", "linear"} | inner


def test_shortcut_subsamples_and_pads():
    block = Block(16, 32).eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 16, 8, 8)
    expected = np.zeros((2, 32, 4, 4), np.float32)
    expected[:, 8:24] = np.maximum(x.numpy()[:, :, ::2, ::2], 0)
    np.testing.assert_array_equal(block(x).detach().numpy(), expected)


def test_symbolic_trace_follows_it():
    model = ResNet(8, in_channels=1).eval()
    x = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("depth", [2, 18, 34])
def test_other_depths_are_refused(depth):
    with pytest.raises(ValueError, match=rf"depth is 6n \+ 2 .*, not {depth}"):
        ResNet(depth)
