"""Tests of the engine: inputs by place and by name, time, and what it says of a file that it cannot read."""

import pytest
import torch
from torch import nn

from fxcompress.errors import LoweringError
from fxcompress.lowering import OnnxRuntime, export_onnx


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    path = tmp_path_factory.mktemp("engine") / "model.onnx"
    export_onnx(nn.Linear(3, 2), path, torch.randn(1, 3))
    return OnnxRuntime(path, threads=1)


def test_time(engine):
    timing = engine.time(torch.randn(4, 3), runs=5)
    assert 0 < timing.best <= timing.median < 1


def test_wrong_number_of_inputs(engine):
    with pytest.raises(LoweringError, match=r"the model takes the tensors \['input'\], and 2 were given"):
        engine.run(torch.randn(1, 3), torch.randn(1, 3))


def test_wrong_shape(engine):
    with pytest.raises(LoweringError, match=r"ONNX Runtime cannot run the model: .*Got: 4 Expected: 3"):
        engine.run(torch.randn(1, 4))


def test_unreadable_file(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(LoweringError, match=r"ONNX Runtime cannot load '.*model.onnx': "):
        OnnxRuntime(tmp_path / "model.onnx")
