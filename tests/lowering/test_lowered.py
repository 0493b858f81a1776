"""Tests of lowering: engine and model agree, over operators and bit widths, and what is said where they do not."""

import copy
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxcompress
from fxcompress.errors import LoweringError, NotReadyError
from fxcompress.graph import capture
from fxcompress.lowering import lower
from fxcompress.nn import Choice, UniformQuantizer
from fxcompress.nn.packing import packed_bytes


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_answer(quantize, residual, images, tmp_path):
    gm = quantize(residual, images, weight=5).train()
    state = copy.deepcopy(gm.state_dict())
    lowered = lower(gm, tmp_path / "model.onnx", images)
    weights = [layer.weight for layer in residual.modules() if hasattr(layer, "weight")]
    assert lowered.weight_bytes == sum(packed_bytes(weight.numel(), 5) for weight in weights)
    assert lowered.bytes == lowered.path.stat().st_size
    assert lowered.opset == 18
    (found,) = lowered.engine.run(images)
    expected = gm.eval()(images)
    assert lowered.largest_difference == pytest.approx((found - expected).abs().max().item())
    assert lowered.relative_difference == pytest.approx(lowered.largest_difference / expected.abs().max().item())
    assert all(torch.equal(state[name], value) for name, value in gm.state_dict().items())


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 5, 8])
def test_activations_are_quantized_exactly(bits, symmetric, power_of_two, tmp_path):
    class Two(nn.Module):
        def forward(self, x):
            return F.relu(x), F.hardtanh(x, -0.5, 0.4), x * 1.0

    x = torch.randn(1000) * 3
    gm = capture(Two(), x)
    for output in list(gm.graph.find_nodes(op="output")[0].args[0]):
        quantizer = UniformQuantizer(bits, symmetric=symmetric, power_of_two=power_of_two)
        quantizer.set_range(torch.tensor(-1.1), torch.tensor(1.4))
        gm.add_module(f"{output.name}_quantizer", quantizer)
        with gm.graph.inserting_after(output):
            node = gm.graph.call_module(f"{output.name}_quantizer", (output,))
        output.replace_all_uses_with(node, delete_user_cb=lambda user, node=node: user is not node)
    gm.recompile()
    assert lower(gm, tmp_path / "model.onnx", x).largest_difference == 0


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6, 3, 3))

    def forward(self, x):
        return F.conv_transpose2d(x, self.weight, stride=2)


torch.manual_seed(0)  # the step below is that of these outputs
OPERATORS = {
    "conv1d": (nn.Conv1d(4, 6, 3), (2, 4, 9), {"QLinearConv": 1}),
    "conv3d": (nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4), {"QLinearConv": 1}),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), (2, 4, 6, 6), {"QLinearConv": 1}),
    "transposed": (Transposed(), (2, 4, 5, 5), {"ConvTranspose": 1}),
    "linear on three axes": (nn.Linear(8, 5), (2, 3, 8), {"MatMulIntegerToFloat": 1}),
    "max pool": (nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 1)), (2, 3, 6, 6), {"QLinearConv": 1}),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name, quantize, kernels, tmp_path):
    model, shape, expected = OPERATORS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    gm = quantize(model, x, weight=4)
    lowered = lower(gm, tmp_path / "model.onnx", x)
    found = kernels(lowered.path)
    assert {kind: found[kind] for kind in expected} == expected
    assert found["DequantizeLinear"] <= 1  # the output's: none on a weight, which would run at each call
    assert lowered.relative_difference <= 1.01 / 127  # one step of the output's quantizer


def test_float_output(quantize, kernels, tmp_path):
    x = torch.randn(4, 8)
    gm = quantize(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), x, weight=4, skip=("_2",))
    lowered = lower(gm, tmp_path / "model.onnx", x)
    assert kernels(lowered.path)["QGemm"] == 2
    assert lowered.relative_difference < 1e-3


def test_embedding_and_float_inputs(quantize, kernels, tmp_path):
    x = torch.randint(0, 30, (2, 5))
    gm = quantize(nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 4)), x, weight=2, activation=None)
    lowered = lower(gm, tmp_path / "model.onnx", x)
    assert lowered.weight_bytes == packed_bytes(30 * 8, 2) + packed_bytes(8 * 4, 2)
    assert set(kernels(lowered.path)) == {"Gather", "MatMul", "Add"}  # weights unpacked when the file was loaded


def test_float_weights_stay_float(quantize, tmp_path):
    x = torch.randn(8, 16)
    gm = quantize(nn.Sequential(nn.Flatten(), nn.Linear(16, 16)), x, weight=None, skip=("_1",))
    assert lower(gm, tmp_path / "model.onnx", x).relative_difference < 1e-6


def test_arguments_by_name(tmp_path):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(2, 4)

        def forward(self, x, y, factor=1.0):
            z = self.a(x) + self.b(y) * factor
            return {"z": z, "best": z.argmax(-1)}

    inputs = {"y": torch.randn(1, 2), "x": torch.randn(1, 3)}
    engine = lower(capture(Sum(), inputs), tmp_path / "model.onnx", inputs).engine
    assert engine.input_names == ["x", "y"]
    by_name = engine.run(y=torch.ones(5, 2), x=torch.zeros(5, 3))
    by_place = engine.run(torch.zeros(5, 3), torch.ones(5, 2))
    assert torch.equal(by_name[0], by_place[0])
    assert by_name[1].shape == (5,)


def test_islands(quantize, tmp_path):
    class Around(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.head = inner, nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.inner(x) if x.shape[-1] == 3 else x)

    x = torch.randn(2, 3)
    lowered = lower(Around(quantize(nn.Linear(3, 4), x)), tmp_path / "model.onnx", x)
    assert lowered.relative_difference < 1e-6


def test_too_large_a_difference(quantize, residual, images, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"old")
    message = "ONNX Runtime differs from the model by .*, .* of the largest output: more than max_difference=1e-12"
    with pytest.raises(LoweringError, match=message):
        lower(quantize(residual, images, skip=("fc",)), tmp_path / "model.onnx", images, max_difference=1e-12)
    assert (tmp_path / "model.onnx").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_open_choice(tmp_path):
    choice = Choice({"4": nn.Identity(), "8": nn.ReLU()}, {"4": {}, "8": {}})
    with pytest.raises(LoweringError, match=r"Choice '0' is open between 4 \| 8: decide it before lowering, by"):
        lower(nn.Sequential(choice), tmp_path / "model.onnx", torch.randn(2))


def test_no_range(tmp_path):
    model = nn.Sequential(UniformQuantizer(4, symmetric=True))
    with pytest.raises(NotReadyError, match=r"Quantizer '0' \(Quantizer\(int4, per tensor\)\) has no range: cali"):
        lower(model, tmp_path / "model.onnx", torch.randn(2))


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_package_is_missing(package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(LoweringError, match=rf"lowering needs '{package}' .*: pip install fxcompress\[onnx\]"):
        lower(nn.Linear(2, 2), tmp_path / "model.onnx", torch.randn(1, 2))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_an_engine_that_answers_wrongly_never_passes(bits, share, quantize, residual, images, tmp_path, monkeypatch):
    gm = quantize(residual, images, weight=8, activation=bits)
    wrong = [gm.eval()(images).detach() * share]
    monkeypatch.setattr("fxcompress.lowering.lowered.OnnxRuntime.run", lambda *args, **kwargs: wrong)
    with pytest.raises(LoweringError, match="ONNX Runtime differs from the model by"):
        lower(gm, tmp_path / "model.onnx", images)


def test_a_model_captured_by_islands_is_refused(tmp_path):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x) if x.sum() < 1e9 else x

    x = torch.randn(2, 4)
    small = fxcompress.transform(Branching(), "w8", example_inputs=x)
    with pytest.raises(LoweringError, match=r"Branching was captured by islands: .*`fxcompress capture` names"):
        fxcompress.lower(small, tmp_path / "model.onnx", x)
    assert not list(tmp_path.iterdir())
