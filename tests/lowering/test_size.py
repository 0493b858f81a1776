"""The size that a plan predicts is what the ONNX file stores."""

import onnx
import pytest
import torch

import fxcompress
from fxcompress.demo.resnet import ResNet


@pytest.mark.parametrize("policy", ["w8a8", "w4a8", "w4"])
def test_the_predicted_size_is_what_the_file_stores(policy, tmp_path):
    torch.manual_seed(0)
    model, images = ResNet(8), torch.randn(16, 3, 16, 16)
    with torch.no_grad():
        for _ in range(5):
            model(images)  # gives the norms statistics, and so the folded biases values
    small = fxcompress.transform(model.eval(), policy, data=[images])
    fxcompress.lower(small, tmp_path / "model.onnx", images, max_difference=0.4)
    stored = onnx.load(tmp_path / "model.onnx").graph.initializer
    in_file = sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in stored)
    assert fxcompress.report(small).record.totals.size == pytest.approx(in_file, rel=0.01)
