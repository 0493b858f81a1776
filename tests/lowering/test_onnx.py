"""Tests of ONNX files: their kernels, their bytes, and that they replace a file whole or not at all."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from fxcompress.errors import LoweringError
from fxcompress.lowering import OnnxRuntime, export_onnx
from fxcompress.lowering import onnx as onnx_module
from fxcompress.nn.packing import packed_bytes


@pytest.fixture(scope="module")
def quantized(quantize, residual, images):
    return quantize(residual, images, weight=3)


@pytest.fixture(scope="module")
def path(quantized, images, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(quantized, path, images)
    return path


def test_all_layers_run_in_integers(path, kernels):
    found = kernels(path)
    assert {kind: found[kind] for kind in ("QLinearConv", "QLinearAdd", "QGemm", "Conv", "Gemm", "Add", "Relu")} == {
        "QLinearConv": 3,
        "QLinearAdd": 1,
        "QGemm": 1,
        "Conv": 0,
        "Gemm": 0,
        "Add": 0,
        "Relu": 0,
    }


def test_weights_are_stored_at_their_width(path, residual):
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    stored = {tensor.name: len(tensor.raw_data) for tensor in model.graph.initializer}
    expected = {
        f"{name}_weight.codes": packed_bytes(layer.weight.numel(), 3)
        for name, layer in residual.named_modules()
        if hasattr(layer, "weight")
    }
    assert {name: size for name, size in stored.items() if name.endswith("weight.codes")} == expected


def test_the_same_bytes_again(path, quantized, images, tmp_path):
    export_onnx(quantized, tmp_path / "again.onnx", images)
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


def test_nothing_of_the_machine(path):
    assert not any(word in path.read_bytes() for word in (b".py", b"torch.nn", b"/work", b"site-packages"))


def test_the_batch_is_free(path, quantized):
    x = torch.randn(7, 3, 8, 8)
    (found,) = OnnxRuntime(path).run(x)
    assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert found.shape == (7, 5)
    assert (found - quantized(x)).abs().max() < 0.05


def test_tied_weights_are_stored_once(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(50, 8), nn.Linear(8, 50, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x):
            return self.head(self.embedding(x))

    export_onnx(Tied(), tmp_path / "model.onnx", torch.tensor([[1, 2]]))
    floats = [tensor for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer if len(tensor.dims) > 1]
    assert [list(tensor.dims) for tensor in floats] == [[50, 8]]


def test_an_old_file_stays_when_the_export_fails(tmp_path):
    class Eigenvalues(nn.Module):
        def forward(self, x):
            return torch.linalg.eigvals(x).real

    old = tmp_path / "model.onnx"
    old.write_bytes(b"old")
    with pytest.raises(LoweringError, match=r"Eigenvalues cannot be exported to ONNX: .*linalg_eig"):
        export_onnx(Eigenvalues(), old, torch.eye(3))
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert old.read_bytes() == b"old"


def test_large_weights_go_to_a_second_file(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_module, "_SINGLE_FILE_BYTES", 1000)
    model, x = nn.Linear(64, 32), torch.randn(2, 64)
    export_onnx(model, tmp_path / "model.onnx", x)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    np.testing.assert_allclose(OnnxRuntime(tmp_path / "model.onnx").run(x)[0], model(x).detach(), atol=1e-5)


def test_opset_too_old(tmp_path):
    with pytest.raises(LoweringError, match="opset 17 does not have the operators that unpack weights: 18 is"):
        export_onnx(nn.Linear(2, 2), tmp_path / "model.onnx", torch.randn(1, 2), opset=17)
