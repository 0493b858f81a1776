"""DynamicQuantizer: against DynamicQuantizeLinear of ONNX Runtime and numpy, the gradient, and what it refuses."""

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from fxcompress.nn import DynamicQuantizer


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def in_onnx_runtime(x):
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["codes", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(x.shape)) for name in "xy"]
    graph = helper.make_graph(nodes, "quantize", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x.numpy()})[0]


@pytest.mark.parametrize("shift", [0.0, 5.0, -5.0, 0.37])
@pytest.mark.parametrize("seed", range(5))
def test_bit_for_bit_as_onnx_runtime(shift, seed):
    x = numbers(7, 33, seed=seed) * 3 + shift
    assert np.array_equal(DynamicQuantizer(8)(x).numpy(), in_onnx_runtime(x))


def by_hand(row, bits, symmetric, narrow):
    """Quantize and dequantize a vector in numpy, with its own range."""
    row = row.astype(np.float32)
    low, high = min(row.min(), np.float32(0)), max(row.max(), np.float32(0))
    first, last = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    first += narrow
    scale = np.float32(max(-low, high)) / np.float32(last) if symmetric else (high - low) / np.float32(last - first)
    scale = scale if scale > 0 else np.float32(1)
    zero = 0 if symmetric else np.clip(np.rint(first - low / scale), first, last)
    return (np.clip(np.rint(row / scale) + zero, first, last) - zero).astype(np.float32) * scale


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize(("symmetric", "narrow"), [(True, True), (True, False), (False, False), (False, True)])
def test_tokens_against_numpy(bits, symmetric, narrow):
    x = numbers(2, 3, 5, 16) * torch.logspace(-3, 3, 30).view(2, 3, 5, 1)
    x[0, 1, 2], x[1, 0, 0] = 0.0, 0.7  # without a range, and a constant
    found = DynamicQuantizer(bits, symmetric=symmetric, narrow=narrow, token=True)(x)
    expected = np.stack([by_hand(row, bits, symmetric, narrow) for row in x.view(-1, 16).numpy()]).reshape(x.shape)
    assert np.array_equal(found.numpy(), expected)


def test_each_call_has_its_own_range():
    quantizer, x = DynamicQuantizer(4), numbers(50)
    assert torch.equal(quantizer(x * 1024), quantizer(x) * 1024)
    assert quantizer.state_dict() == {}
    assert quantizer.ready


def test_a_token_does_not_touch_others():
    x = numbers(3, 8)
    quantizer = DynamicQuantizer(4, token=True)
    before = quantizer(x)
    x[1] *= 1000
    after = quantizer(x)
    assert torch.equal(before[[0, 2]], after[[0, 2]])


def test_power_of_two_scales():
    x = torch.tensor([[0.9, -0.3], [3.0, 1.0]])
    found = DynamicQuantizer(4, symmetric=True, power_of_two=True, token=True)(x)
    assert found.tolist() == [[0.875, -0.25], [3.0, 1.0]]  # steps of 1/8 and 1/2


@pytest.mark.parametrize("token", [True, False])
def test_constants(token):
    for value in (0.0, 3.25, -3.25, 1e-30, 1e30):
        x = torch.full((2, 3), value)
        torch.testing.assert_close(DynamicQuantizer(8, token=token)(x), x, rtol=1e-6, atol=0)


@pytest.mark.parametrize("token", [True, False])
def test_the_gradient_passes_everywhere(token):
    x = numbers(4, 6).requires_grad_()
    DynamicQuantizer(2, token=token)(x).backward(torch.full_like(x, 2.0))
    assert (x.grad == 2).all()


def test_nan_is_not_hidden():
    x = numbers(3, 4)
    x[1, 2] = torch.nan
    assert DynamicQuantizer(8)(x).isnan().all()
    assert DynamicQuantizer(8, token=True)(x).isnan().any(1).tolist() == [False, True, False]


def test_it_takes_no_range():
    message = r"Quantizer\(uint8, dynamic per tensor\) takes its range from each call; it cannot be set"
    quantizer = DynamicQuantizer(8)
    with pytest.raises(ValueError, match=message):
        quantizer.set_range(torch.tensor(0.0), torch.tensor(1.0))
    quantizer.forget_range()
    assert quantizer.ready


@pytest.mark.parametrize(("symmetric", "least"), [(True, -0.875), (False, -1.0)])
def test_no_gradient_where_powers_of_two_end_before_the_range(symmetric, least):
    """Steps of 1/8: the codes of 1 and 0.95 would be 8, of which 7 is the last."""
    x = torch.tensor([1.0, 0.95, 0.9, 0.3, -1.0], requires_grad=True)
    rounded = DynamicQuantizer(4, symmetric=symmetric, power_of_two=True)(x)
    rounded.sum().backward()
    assert rounded.tolist() == [0.875, 0.875, 0.875, 0.25, least]
    assert x.grad.tolist() == [0, 0, 1, 1, least == -1]


def test_a_span_beyond_float32_is_cut():
    largest = torch.finfo(torch.float32).max
    found = DynamicQuantizer(8)(torch.tensor([-largest, largest, 0.0]))
    assert found.isfinite().all()
    assert found[2] == 0
    assert found[1] > 0.45 * largest
