"""Symbolic tracing: layers as text and beside the original, and what cannot be followed, named by module and line."""

import linecache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxcompress.errors import CaptureError
from fxcompress.graph import capture, layers, text, verify
from fxcompress.graph.coverage import coverage

LAYERS = [
    (
        nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2),
        (4, 16),
        "layer = conv1d(x, layer.weight, layer.bias, (2,), (1,), (2,), 2)",
    ),
    (
        nn.Conv2d(2, 3, (3, 4), padding="same", dilation=2),
        (2, 9, 9),
        "layer = conv2d(x, layer.weight, layer.bias, (1, 1), 'same', (2, 2), 1)",
    ),
    (
        nn.Conv2d(1, 2, (3, 5), padding=(1, 2), padding_mode="reflect", bias=False),
        (1, 8, 8),
        "layer_pad = pad(x, (2, 2, 1, 1), mode='reflect', value=None)\n"
        "layer = conv2d(layer_pad, layer.weight, None, (1, 1), (0, 0), (1, 1), 1)",
    ),
    (
        nn.Conv3d(1, 2, 2, stride=(1, 2, 1)),
        (1, 4, 4, 4),
        "layer = conv3d(x, layer.weight, layer.bias, (1, 2, 1), (0, 0, 0), (1, 1, 1), 1)",
    ),
    (
        nn.ConvTranspose1d(2, 4, 3, stride=2, output_padding=1, groups=2),
        (2, 5),
        "layer = conv_transpose1d(x, layer.weight, layer.bias, (2,), (0,), (1,), 2, (1,))",
    ),
    (
        nn.ConvTranspose2d(2, 3, 2, padding=1, dilation=2),
        (2, 5, 5),
        "layer = conv_transpose2d(x, layer.weight, layer.bias, (1, 1), (1, 1), (0, 0), 1, (2, 2))",
    ),
    (
        nn.ConvTranspose3d(1, 2, 2, bias=False),
        (1, 3, 3, 3),
        "layer = conv_transpose3d(x, layer.weight, None, (1, 1, 1), (0, 0, 0), (0, 0, 0), 1, (1, 1, 1))",
    ),
    (nn.Linear(3, 2), (4, 3), "layer = linear(x, layer.weight, layer.bias)"),
    (nn.PReLU(), (4, 3), "layer = prelu(x, layer.weight)"),
]


class Net(nn.Module):
    """One layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize(("layer", "shape", "line"), LAYERS, ids=[str(case[0]) for case in LAYERS])
def test_layers(layer, shape, line, same):
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    assert text(same(Net(layer), x)) == f"x: input\n{line}\nreturn layer"


@pytest.mark.parametrize(
    "layer", [nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.Upsample(scale_factor=2), nn.GRU(4, 2)], ids=str
)
def test_other_modules(layer, same):
    gm = same(Net(layer), torch.randn(2, 4, 4))
    assert layers(gm) == []


def test_embeddings(same):
    x = torch.tensor([[1, 0], [4, 1]])
    gm = same(Net(nn.Embedding(5, 3, padding_idx=0)), x)
    gm.train()(x).sum().backward()
    assert gm.layer.weight.grad[0].tolist() == [0, 0, 0]
    gm = same(Net(nn.Embedding(5, 3, max_norm=1.0)), x)
    assert text(gm) == "x: input\nlayer = Embedding(5, 3, max_norm=1.0)(x)\nreturn layer"


def test_spellings_have_one_form(reads):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(2, 2, 1, 1))

        def forward(self, x):
            y = torch.conv2d(x, self.w, padding=1)
            return F.conv2d(weight=self.w, input=y).add(y) + torch.add(x[..., :1, :1], 1) + torch.add(y, y, alpha=2)

    reads(
        capture(Functional(), torch.ones(1, 2, 1, 1)),
        """
        x: input
        conv2d = conv2d(x, w, None, (1, 1), (1, 1), (1, 1), 1)
        conv2d_1 = conv2d(conv2d, w, None, (1, 1), (0, 0), (1, 1), 1)
        add = add(conv2d_1, conv2d)
        getitem = getitem(x, (Ellipsis, slice(None, 1, None), slice(None, 1, None)))
        add_1 = add(getitem, 1)
        add_2 = add(add, add_1)
        add_3 = add(conv2d, conv2d, alpha=2)
        add_4 = add(add_2, add_3)
        return add_4
        """,
    )


def test_a_layer_called_twice_and_a_parameter_used_directly(reads, same):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.gain = nn.Linear(3, 3), nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

        def forward(self, x):
            return self.fc(self.fc(x * self.gain)) - self.fc.weight.sum()

    reads(
        same(Twice(), torch.randn(2, 3)),
        """
        x: input
        mul = mul(x, gain)
        fc = linear(mul, fc.weight, fc.bias)
        fc_1 = linear(fc, fc.weight, fc.bias)
        sum_1 = sum(fc.weight, None, False)
        sub = sub(fc_1, sum_1)
        return sub
        """,
    )


def test_containers(reads, same):
    class Lists(nn.Module):
        def __init__(self):
            super().__init__()
            self.scales = nn.ParameterList([torch.ones(2), torch.full((2,), 2.0)])
            self.blocks = nn.ModuleList([nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU())])
            self.heads = nn.ModuleDict({"a": nn.Linear(2, 1)})

        def forward(self, x):
            for scale, block in zip(self.scales, self.blocks, strict=True):
                x = block(x) * scale
            return self.heads["a"](x)

    reads(
        same(Lists(), torch.randn(2, 2)),
        """
        x: input
        blocks_0 = linear(x, blocks.0.weight, blocks.0.bias)
        mul = mul(blocks_0, scales.0)
        blocks_1_0 = linear(mul, blocks.1.0.weight, blocks.1.0.bias)
        blocks_1_1 = relu(blocks_1_0)
        mul_1 = mul(blocks_1_1, scales.1)
        heads_a = linear(mul_1, heads.a.weight, heads.a.bias)
        return heads_a
        """,
    )


def test_parametrized_weights(same):
    gm = same(Net(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))), torch.randn(2, 2))
    assert [line.split(" = ")[0] for line in text(gm).splitlines()[1:-1]] == [
        "layer_parametrizations_weight",
        "layer",
    ]


def test_a_module_made_while_running(reads):
    class Makes(nn.Module):
        def forward(self, x):
            return nn.ReLU()(x) + nn.Sequential(nn.Flatten(0), nn.Tanh())(x)

    reads(
        capture(Makes(), torch.randn(2)),
        """
        x: input
        relu = relu(x)
        flatten = flatten(x, 0, -1)
        tanh = tanh(flatten)
        add = add(relu, tanh)
        return add
        """,
    )


@pytest.mark.parametrize(("model", "expected"), [(nn.Sequential(), "return input_1"), (nn.ReLU(), "return relu")])
def test_a_model_without_parameters(model, expected):
    gm = capture(model, torch.ones(2))
    assert text(gm).splitlines()[-1] == expected
    assert layers(gm) == []
    verify(gm)


def test_a_layer_as_the_model(same, reads):
    reads(
        same(nn.Linear(2, 2), torch.randn(1, 2)),
        """
        input_1: input
        linear = linear(input_1, weight, bias)
        return linear
        """,
    )


def test_a_thousand_layers():
    gm = capture(nn.Sequential(*(nn.Linear(1, 1) for _ in range(1000))), torch.ones(1, 1))
    found = layers(gm)
    assert [layer.name for layer in found] == [str(index) for index in range(1000)]
    assert [layer.weight_edges()[0].target for layer in found] == [f"{index}.weight" for index in range(1000)]
    verify(gm)


class Loops(nn.Module):
    """A loop over a size, which tracing does not know."""

    def forward(self, x):
        for _ in range(x.shape[0]):
            x = x + 1
        return x


class Builds(nn.Module):
    """A module with parameters that is made while running."""

    def forward(self, x):
        return nn.Linear(2, 2)(x)


class Branches(nn.Module):
    """A branch on a value."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


class Writes(nn.Module):
    """An assignment to part of a tensor."""

    def forward(self, x):
        x[0] = 1
        return x


BRANCH = "symbolically traced variables cannot be used as inputs to control flow"


@pytest.mark.parametrize(
    ("model", "where", "line", "reason"),
    [
        (Branches(), "", "return x if x.sum() > 0 else -x", BRANCH),
        (
            nn.Sequential(nn.ReLU(), nn.Sequential(Branches())),
            " in module '1.0'",
            "return x if x.sum() > 0 else -x",
            BRANCH,
        ),
        (Loops(), "", "for _ in range(x.shape[0]):", "'_Proxy' object cannot be interpreted as an integer"),
        (Writes(), "", "x[0] = 1", "'_Proxy' object does not support item assignment"),
        (Builds(), "", "return nn.Linear(2, 2)(x)", "module is not installed as a submodule"),
    ],
)
def test_what_cannot_be_followed(model, where, line, reason, refused):
    number = [row.strip() for row in Path(__file__).read_text().splitlines()].index(line) + 1
    message = f"{type(model).__name__} cannot be traced{where} at {__file__}:{number} ({line}): {reason}"
    with refused(CaptureError, message):
        capture(model, torch.ones(2, 2), way="symbolic")


def test_what_cannot_be_followed_makes_way_for_islands():
    gm = capture(nn.Sequential(nn.Linear(2, 2), Branches()), torch.ones(2, 2))
    assert [layer.name for layer in layers(gm)] == ["0"]
    assert coverage(gm).way == "islands"
    assert BRANCH in coverage(gm).tried[0].reason


def test_a_module_of_torch_that_cannot_be_followed(refused):
    with refused(CaptureError, f"LSTM cannot be traced: {BRANCH}"):
        capture(nn.LSTM(2, 2), torch.ones(3, 2), way="symbolic")
    assert coverage(capture(nn.LSTM(2, 2), torch.ones(3, 2))).way == "export"


def test_a_package_whose_name_begins_like_torch(refused):
    file, source = f"{Path(torch.__file__).parent}vision/net.py", "def forward(self, x):\n    return -x if x else x\n"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    namespace = {}
    exec(compile(source, file, "exec"), namespace)
    model = type("Net", (nn.Module,), namespace)()
    with refused(CaptureError, f"Net cannot be traced at {file}:2 (return -x if x else x): {BRANCH}"):
        capture(model, way="symbolic")
