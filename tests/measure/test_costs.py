"""Size, bit operations and latency against numbers worked out by hand."""

import json

import pytest
import torch
from torch import nn

from fxcompress.errors import NotReadyError, PolicyError
from fxcompress.graph import capture
from fxcompress.graph.inputs import as_arguments
from fxcompress.graph.shapes import shapes
from fxcompress.measure.calibrate import calibrate
from fxcompress.measure.costs import bops, latency, rest_size, size
from fxcompress.measure.options import survey
from fxcompress.passes import apply
from fxcompress.policies import FoldBatchNorm, Prune, Quantize, Supernet


def prices(gm, cost, picks=None, x=None, **args):
    """Return what each layer costs."""
    known = None
    if x is not None:
        calibrate(gm, [x])
        known = shapes(gm, as_arguments(x))
    return {name: cost(gm, one.layer, one.option(picks or {}), **args) for name, one in survey(gm, known).items()}


def stepped(model, *steps):
    gm = capture(model)
    for step in steps:
        apply(step, gm)
    return gm


def quantize(*rules):
    return Quantize(rules=rules)


class Net(nn.Module):
    """A convolution, its norm, a linear layer, an add."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 4 * 4, 10)

    def forward(self, x):
        y = self.fc(self.bn(self.conv(x)).flatten(1))
        return y + y


IMAGE = torch.zeros(1, 3, 8, 8)


def test_size_in_float():
    gm = stepped(Net())
    # 8 x 3 x 3 x 3 and 128 x 10 weights, 10 biases; the norm has 4 x 8 values; 4 bytes each
    assert prices(gm, size) == {"conv": 864, "fc": 5120 + 40, "add": 0}
    assert rest_size(gm) == 128


def test_size_folded():
    gm = stepped(Net().eval(), FoldBatchNorm())
    assert prices(gm, size) == {"conv": 864 + 8 * 4, "fc": 5160, "add": 0}  # the norm becomes a bias
    assert rest_size(gm) == 0


def test_size_quantized():
    rules = (
        {"weight": {"bits": 3}, "input": {"bits": 8}},
        {"select": {"names": ["fc"]}, "weight": {"per": "tensor"}},
    )
    gm = stepped(Net(), quantize(*rules))
    # 216 weights of 3 bits are 81 bytes, with 8 scales; 1280 are 480 bytes, with one; ten int32 biases, a scale each
    assert prices(gm, size) == {"conv": 81 + 8 * 4, "fc": 480 + 4 + 10 * 8, "add": 0}
    assert rest_size(gm) == 128 + 2 * 5  # two inputs have a scale and a zero point each


@pytest.mark.parametrize(("symmetric", "zero_points"), [(True, 0), (False, 8)])
def test_zero_points(symmetric, zero_points):
    rule = {"select": {"names": ["conv"]}, "weight": {"bits": 8, "symmetric": symmetric}}
    assert prices(stepped(Net(), quantize(rule)), size)["conv"] == 216 + 8 * 4 + zero_points


def test_size_rounds_up_to_whole_bytes():
    gm = stepped(nn.Sequential(nn.Linear(3, 1, bias=False)), quantize({"weight": {"bits": 3}}))
    assert prices(gm, size) == {"0": 2 + 4}


def test_zeros_take_room():
    gm = stepped(nn.Sequential(nn.Linear(4, 4, bias=False)), Prune(rules=({"sparsity": 0.5},)))
    assert prices(gm, size) == {"0": 64}


class Tied(nn.Module):
    """An embedding whose weight is also the output layer's."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.offset = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        return self.head(self.embed(x) + self.offset)


def test_a_tied_weight_counts_once():
    gm = stepped(Tied())
    assert prices(gm, size) == {"embed": 80, "add": 0, "head": 0}
    assert rest_size(gm) == 16


@pytest.mark.parametrize(("folded", "stored"), [((), 1), (("a",), 2), (("b",), 2), (("a", "b"), 2)])
def test_a_tied_weight_that_is_folded_is_another(folded, stored):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = nn.Linear(2, 2, bias=False)  # has the parameter's first name
            self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
            self.unused.weight = self.a.weight = self.b.weight
            self.norms = nn.ModuleDict({name: nn.BatchNorm1d(2) for name in folded})

        def forward(self, x):
            x = self.a(x)
            if "a" in folded:
                x = self.norms["a"](x)
            x = self.b(x)
            return self.norms["b"](x) if "b" in folded else x

    gm = stepped(Net().eval(), FoldBatchNorm(), quantize({"weight": {"bits": 8}}))
    assert sum(prices(gm, size).values()) == stored * (4 + 2 * 4) + len(folded) * 2 * 4
    assert rest_size(gm) == 0


class TwoNorms(nn.Module):
    """A convolution with two norms, a norm called twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn1, self.bn2 = nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2), nn.BatchNorm1d(2)
        self.again = nn.BatchNorm1d(2)

    def forward(self, x):
        return self.again(torch.relu(self.again(torch.relu(self.bn2(self.conv(self.bn1(self.conv(x))))))))


def test_a_weight_folded_twice_counts_twice():
    gm = stepped(TwoNorms().eval(), FoldBatchNorm(), quantize({"weight": {"bits": 8}}))
    assert prices(gm, size) == {"conv": 2 * (4 + 2 * 4) + 2 * 2 * 4}
    assert rest_size(gm) == 4 * 2 * 4  # the norm that is called twice counts once


def test_a_grouped_transposed_convolution():
    model = nn.Sequential(nn.ConvTranspose1d(4, 6, 3, groups=2, bias=False), nn.BatchNorm1d(6)).eval()
    gm = stepped(model, FoldBatchNorm(), quantize({"weight": {"bits": 8}}))
    # 4 x 3 x 3 weights, scales along the axis of 6 / 2 channels, 6 biases
    assert prices(gm, size) == {"0": 36 + 3 * 4 + 24}
    assert prices(gm, bops, x=torch.zeros(1, 4, 5)) == {"0": 5 * 36 * 8 * 32}


def test_a_kernel_cut_to_its_centre():
    step = Supernet(rules=({"kernel_size": 3},))
    gm = stepped(nn.Sequential(nn.Conv1d(2, 2, 5, padding=2, bias=False)), step)
    assert prices(gm, size) == {"0": 2 * 2 * 3 * 4}
    assert prices(gm, bops, x=torch.zeros(1, 2, 7)) == {"0": 7 * 2 * 2 * 3 * 1024}


def test_bops():
    gm = stepped(Net(), quantize({"select": {"names": ["conv"]}, "weight": {"bits": 4}, "input": {"bits": 8}}))
    # 8 x 4 x 4 outputs of 27 products, 4 x 8 bits each; 1280 products of floats
    assert prices(gm, bops, x=IMAGE) == {"conv": 128 * 27 * 32, "fc": 1280 * 1024, "add": 0}
    apply(Prune(rules=({"sparsity": 0.25},)), gm)
    assert prices(gm, bops, x=IMAGE) == {"conv": 128 * 27 * 24, "fc": 960 * 1024, "add": 0}


def test_bops_of_a_depthwise_convolution_called_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(4, 4, 3, groups=4)

        def forward(self, x):
            return self.conv(self.conv(x))

    assert prices(stepped(Twice()), bops, x=torch.zeros(1, 4, 9)) == {"conv": (7 + 5) * 4 * 3 * 1024}


def test_bops_without_shapes():
    message = "budget bops needs the shapes that flow through the model: pass example_inputs=... or data=..."
    with pytest.raises(NotReadyError, match=message):
        prices(stepped(Net()), bops)


def test_options_of_open_choices():
    rule = {"weight": {"bits": (2, "float")}, "input": {"bits": (4, 8)}}
    gm = stepped(nn.Sequential(nn.Linear(4, 4, bias=False)), quantize(rule), Prune(rules=({"sparsity": (0.0, 0.5)},)))
    names = ("0.weight_quantizer_choice", "input_1_quantizer_choice", "0.weight_mask_choice")
    known = {"float": (None, 32), "int2": (2, 2)}
    (one,) = survey(gm, None).values()
    for weight, (bits, weight_bits) in known.items():
        for inputs in (4, 8):
            for share, label in ((0.0, "dense"), (0.5, "50% sparse")):
                option = one.option(dict(zip(names, (weight, f"uint{inputs}", label), strict=True)))
                assert (option.weight and option.weight.bits, option.weight_bits) == (bits, weight_bits)
                assert (option.input_bits, option.sparsity) == (inputs, share)
    nothing = one.option({})
    assert (nothing.weight, nothing.input, nothing.sparsity) == (None, None, 0.0)


def row(kind, input, weight, arguments, **kwargs):
    return {"kind": kind, "input": input, "weight": weight, "arguments": arguments, **kwargs}


CONV = row("conv2d", [1, 3, 8, 8], [8, 3, 3, 3], [[2, 2], [1, 1], [1, 1], 1])
LINEAR = row("linear", [1, 128], [10, 128], [])


def write_table(folder, *rows):
    path = folder / "table.json"
    path.write_text(json.dumps({"version": 1, "device": "desk", "engine": "by hand", "rows": rows}))
    return str(path)


def test_latency(tmp_path):
    table = write_table(
        tmp_path,
        CONV | {"median": 100},
        CONV | {"median": 70, "weight_bits": 4, "input_bits": 8, "sparsity": 0.3},
        LINEAR | {"median": 50},
    )
    assert prices(stepped(Net()), latency, x=IMAGE, table=table) == {"conv": 100, "fc": 50, "add": 0}
    conv = {"select": {"names": ["conv"]}}
    steps = quantize(conv | {"weight": {"bits": 4}, "input": {"bits": 8}}), Prune(rules=(conv | {"sparsity": 0.3},))
    # a share of 0.3 is 65 of 216 weights, which is what the mask has
    assert prices(stepped(Net(), *steps), latency, x=IMAGE, table=table) == {"conv": 70, "fc": 50, "add": 0}


@pytest.mark.parametrize("way", ["symbolic", "islands"])  # two calls, or one that runs twice
def test_each_call_is_looked_up(way, tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(1, 1, 3)

        def forward(self, x):
            return self.conv(self.conv(x))

    conv = row("conv1d", [1, 1, 9], [1, 1, 3], [[1], [0], [1], 1])
    table = write_table(tmp_path, conv | {"median": 10}, conv | {"input": [1, 1, 7], "median": 4})
    x = torch.zeros(1, 1, 9)
    assert prices(capture(Twice(), x, way=way), latency, x=x, table=table) == {"conv": 14}


def test_a_table_without_the_entry(tmp_path):
    table = write_table(tmp_path, CONV | {"median": 100}, LINEAR | {"median": 50, "weight_bits": 8})
    message = (
        rf"latency table {table} has no entry that 'fc' needs: kind linear, input \[1, 128\], weight \[10, 128\], "
        r"arguments \[\], weight_bits 32, input_bits 32, sparsity 0; measure it, or take the option off the list"
    )
    with pytest.raises(NotReadyError, match=message):
        prices(stepped(Net()), latency, x=IMAGE, table=table)


def test_latency_without_shapes(tmp_path):
    with pytest.raises(NotReadyError, match="budget latency needs the shapes that flow through the model"):
        prices(stepped(Net()), latency, table=write_table(tmp_path))


def test_a_table_is_read_anew(tmp_path):
    for median in (1, 2):
        table = write_table(tmp_path, LINEAR | {"median": median}, CONV | {"median": 0})
        assert prices(stepped(Net()), latency, x=IMAGE, table=table)["fc"] == median


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        ("not json", ": Invalid JSON: expected ident"),
        ('{"version": 1, "device": "d", "engine": "e"}', "rows: Field required"),
        (
            '{"version": 1, "device": "d", "engine": "e", "rows": [{"kind": "linear"}]}',
            "rows.0.input: Field required",
        ),
        ('{"version": 2, "device": "d", "engine": "e", "rows": []}', "version: Input should be 1"),
        (
            '{"version": 1, "devise": "d", "engine": "e", "rows": []}',
            r"unknown key 'devise' \(did you mean 'device'\?\)",
        ),
    ],
    ids=["no file", "no json", "no rows", "half a row", "version", "unknown key"],
)
def test_files_that_are_no_table(tmp_path, content, message):
    path = tmp_path / "table.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(PolicyError, match=rf"latency table {path}: .*{message}"):
        prices(stepped(Net()), latency, x=IMAGE, table=str(path))
