"""Modules of torch: which become operators of the table, which stay modules, and which are not looked into."""

import pytest
import torch
from torch import nn

from fxcompress.graph import capture
from fxcompress.graph.module_kinds import TRANSPARENT, is_kept, is_opaque
from fxcompress.graph.operators.calls import operator_of
from fxcompress.nn import Mask, UniformQuantizer
from tests.graph.operators.spellings import CUBE, IMAGE, LINE, TOKENS, X

MODULES = [
    *((nn.Conv1d(4, 6, 3, groups=2), LINE), (nn.Conv2d(4, 6, 3), IMAGE), (nn.Conv3d(4, 6, 3), CUBE)),
    *((nn.ConvTranspose1d(4, 6, 2), LINE), (nn.ConvTranspose2d(4, 6, 2), IMAGE), (nn.ConvTranspose3d(4, 6, 2), CUBE)),
    *((nn.Linear(4, 6), X), (nn.Embedding(6, 3, 0), TOKENS), (nn.LayerNorm(4), X), (nn.GroupNorm(2, 4), IMAGE)),
    *((nn.Flatten(), IMAGE), (nn.Unflatten(1, (2, 2)), X), (nn.ReLU(), X), (nn.ReLU6(), X), (nn.LeakyReLU(0.2), X)),
    *((nn.ELU(0.5), X), (nn.GELU("tanh"), X), (nn.SiLU(), X), (nn.Hardswish(), X), (nn.Hardsigmoid(), X)),
    *((nn.Hardtanh(-0.5, 0.5), X), (nn.Sigmoid(), X), (nn.Tanh(), X), (nn.Softmax(1), X), (nn.LogSoftmax(1), X)),
    *((nn.Softplus(2.0, 1.0), X), (nn.Mish(), X), (nn.PReLU(4), X), (nn.PixelShuffle(2), IMAGE)),
    *((nn.MaxPool1d(2, padding=1), LINE), (nn.MaxPool2d(3, ceil_mode=True), IMAGE), (nn.MaxPool3d(2, 1), CUBE)),
    *((nn.AvgPool1d(2), LINE), (nn.AvgPool2d(3, divisor_override=2), IMAGE), (nn.AvgPool3d(2, padding=1), CUBE)),
    *((nn.AdaptiveAvgPool1d(2), LINE), (nn.AdaptiveAvgPool2d((None, 3)), IMAGE), (nn.AdaptiveAvgPool3d(2), CUBE)),
]
WITHOUT_ROW = (nn.Identity, nn.Upsample, nn.AdaptiveMaxPool2d, nn.ZeroPad2d)


@pytest.mark.parametrize("way", ["symbolic", "export"])
@pytest.mark.parametrize(("module", "x"), MODULES, ids=[str(module) for module, _ in MODULES])
def test_modules_of_torch_are_rows(module, x, way):
    gm = capture(nn.Sequential(module), x, way=way)
    called = [node for node in gm.graph.nodes if node.op.startswith("call") and node.name != "expect_sizes"]
    (found,) = called
    assert operator_of(found) is not None
    assert found.name == "_0"
    torch.testing.assert_close(gm(x), module(x), rtol=0, atol=0)


def test_every_transparent_module_is_tested():
    assert {type(module) for module, _ in MODULES} | set(WITHOUT_ROW) == set(TRANSPARENT)


@pytest.mark.parametrize(
    ("module", "kept", "opaque"),
    [
        *((module, False, False) for module in (nn.Linear(2, 2), nn.Sequential(), nn.ModuleList(), nn.Identity())),
        *((module, True, False) for module in (nn.BatchNorm2d(2), nn.SyncBatchNorm(2), nn.InstanceNorm1d(2))),
        *((module, True, False) for module in (nn.Dropout(), nn.AlphaDropout(), nn.Dropout3d())),
        *((module, True, False) for module in (UniformQuantizer(8, symmetric=True), Mask(torch.ones(2)))),
        *((module, False, True) for module in (nn.LSTM(2, 2), nn.GRUCell(2, 2), nn.MultiheadAttention(2, 1))),
        *((module, False, True) for module in (nn.EmbeddingBag(2, 2), nn.RReLU(), nn.CrossEntropyLoss())),
        *((module, False, True) for module in (nn.Embedding(2, 2, max_norm=1.0), nn.Bilinear(2, 2, 2))),
    ],
    ids=str,
)
def test_kinds_of_modules(module, kept, opaque):
    assert (is_kept(module), is_opaque(module)) == (kept, opaque)


@pytest.mark.parametrize(
    ("base", "arguments", "kept"), [(nn.BatchNorm2d, (2,), True), (nn.Dropout, (), True), (nn.LSTM, (2, 2), False)]
)
def test_a_class_of_ones_own(base, arguments, kept):
    class Own(base):
        def forward(self, x):
            return super().forward(x)

    assert (is_kept(Own(*arguments)), is_opaque(Own(*arguments))) == (kept, False)
