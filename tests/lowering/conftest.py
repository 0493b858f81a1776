"""What the tests of lowering share: a way to put quantizers into a network, and a look at ONNX Runtime's kernels."""

import collections

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from fxcompress.graph import capture, layers
from fxcompress.graph.edit import constant_value, insert, is_constant
from fxcompress.nn import UniformQuantizer


class _Recorder(fx.Interpreter):
    def run_node(self, n):
        value = super().run_node(n)
        self.values[n] = value
        return value


def _values(gm, *inputs):
    recorder = _Recorder(gm)
    recorder.values = {}
    recorder.run(*inputs)
    return recorder.values


def _quantize(model, *inputs, weight=8, activation=8, symmetric=False, skip=()):
    """Quantize all weights per output channel, and all activations that no relu follows, except those in `skip`."""
    gm = capture(model.eval(), inputs)
    values = _values(gm, *inputs)
    for layer in layers(gm) if weight else ():
        if layer.name in skip or layer.weight is None:
            continue
        for edge in layer.weight_edges():
            value, axis = constant_value(gm, edge).detach(), layer.operator.out_axis
            quantizer = dict(gm.named_modules()).get(f"{layer.owner}_quantizer")
            if quantizer is None:
                quantizer = UniformQuantizer(weight, symmetric=True, axis=axis, channels=value.shape[axis])
                others = [other for other in range(value.dim()) if other != axis]
                quantizer.set_range(value.amin(others), value.amax(others))
            insert(gm, edge, f"{layer.owner}_quantizer", quantizer, list(edge.users))
    for node, value in values.items() if activation else ():
        clamped = [user.target in (F.relu, F.hardtanh) for user in node.users]
        if node.name in skip or node.op == "output" or any(clamped) or is_constant(gm, node):
            continue
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            quantizer = UniformQuantizer(activation, symmetric=symmetric)
            quantizer.set_range(value.amin(), value.amax())
            insert(gm, node, f"{node.name}_quantizer", quantizer, list(node.users))
    gm.recompile()
    return gm


def _kernels(path, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options)
    return collections.Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


@pytest.fixture(scope="session")
def quantize():
    return _quantize


@pytest.fixture
def kernels(tmp_path):
    return lambda path: _kernels(path, tmp_path)


class Residual(nn.Module):
    """Two convolutions beside a shortcut, a pool and a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.down = nn.Conv2d(3, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        y = self.conv2(F.relu(self.conv1(x)))
        y = F.relu(y + self.down(x))
        return self.fc(y.mean((2, 3)))


@pytest.fixture(scope="session")
def residual():
    torch.manual_seed(0)
    return Residual()


@pytest.fixture(scope="session")
def images():
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
