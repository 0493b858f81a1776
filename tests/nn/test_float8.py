"""Float8Quantizer: against ONNX Runtime and the list of all float8 numbers, and its gradient."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from fxcompress.nn import Float8Quantizer, Layout

ONNX = {"e4m3": TensorProto.FLOAT8E4M3FN, "e5m2": TensorProto.FLOAT8E5M2}
TYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
forms = pytest.mark.parametrize("form", ["e4m3", "e5m2"])


def every_number(form):
    """Return all finite numbers of the type, ascending, from their bits."""
    numbers = torch.arange(256, dtype=torch.uint8).view(TYPES[form]).float()
    return numbers[numbers.isfinite()].unique()


def ready(form, end=1.0, layout=None):
    quantizer = Float8Quantizer(form, layout=layout)
    ends = torch.as_tensor(end).expand(quantizer.scale.shape)
    quantizer.set_range(-ends / 2, ends)
    return quantizer


@forms
def test_against_the_nearest_of_all_numbers(form):
    table = every_number(form).numpy().astype(np.float64)
    quantizer = ready(form, float(table.max()))  # a scale of one
    x = torch.cat([torch.randn(2000) * s for s in (1e-6, 1e-2, 1.0, 100.0, 1e5)]).double()
    distance = np.abs(x.numpy()[:, None] - table)
    nearest = table[distance.argmin(1)]
    clear = np.sort(distance, 1)[:, 0] < np.sort(distance, 1)[:, 1]  # not in the middle of two
    assert clear.mean() > 0.9
    assert np.array_equal(quantizer(x.float()).numpy()[clear], nearest.astype(np.float32)[clear])


@forms
def test_ties_go_to_even(form):
    table = every_number(form)
    positive = table[table >= 0]
    middles = (positive[1:] + positive[:-1]) / 2
    found = ready(form, table.max().item())(middles)
    even = torch.where(torch.arange(len(middles)) % 2 == 0, positive[:-1], positive[1:])  # codes count upward
    assert torch.equal(found, even)


def in_onnx_runtime(x, quantizer, **attributes):
    zero = helper.make_tensor(
        "zero", ONNX[quantizer.form], list(quantizer.scale.shape), [0.0] * quantizer.scale.numel()
    )
    scale = onnx.numpy_helper.from_array(quantizer.scale.numpy(), "scale")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"], **attributes),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["y"], **attributes),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(x.shape)) for name in "xy"]
    graph = helper.make_graph(nodes, "quantize", ends[:1], ends[1:], [scale, zero])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x.numpy()})[0]


@forms
@pytest.mark.parametrize("end", [1.0, 3.7, 1e-3, 1e6])
def test_bit_for_bit_as_onnx_runtime(form, end):
    quantizer = ready(form, end)
    x = torch.cat([torch.randn(500) * end * s for s in (1e-4, 0.1, 0.5, 2.0)])
    grid = every_number(form) * quantizer.scale
    x = torch.cat([x, grid, (grid[1:] + grid[:-1]) / 2, torch.tensor([1e30, -1e30, 0.0])])
    assert np.array_equal(quantizer(x).numpy(), in_onnx_runtime(x, quantizer))


@forms
def test_groups_bit_for_bit_as_blocks_in_onnx_runtime(form):
    x = torch.randn(5, 10, generator=torch.Generator().manual_seed(0))
    quantizer = Float8Quantizer(form, layout=Layout.group(0, x.shape, 4))
    rows = quantizer.layout.rows(x)
    quantizer.set_range(rows.amin(1), rows.amax(1))
    assert np.array_equal(quantizer(2 * x).numpy(), in_onnx_runtime(2 * x, quantizer, axis=1, block_size=4))


@forms
def test_channels(form):
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1e-4], [1.0], [1e4]])
    quantizer = Float8Quantizer(form, layout=Layout.channel(0, 3))
    quantizer.set_range(x.amin(1), x.amax(1))
    torch.testing.assert_close(quantizer.scale, x.abs().amax(1) / every_number(form).max())
    for row, scale, found in zip(x, quantizer.scale, quantizer(x), strict=True):
        assert torch.equal((row / scale).to(TYPES[form]).float() * scale, found)
        assert found.abs().max() == pytest.approx(row.abs().max().item())
    assert quantizer.codes(x).dtype is TYPES[form]


@forms
def test_the_gradient_passes_where_nothing_saturates(form):
    quantizer = ready(form, 1.0)
    half_a_step = {"e4m3": 16 / 448, "e5m2": 4096 / 57344}[form]
    inside = [0.0, 0.3, 1.0, -1.0, 1 + 0.9 * half_a_step, -1 - 0.9 * half_a_step]
    x = torch.tensor([*inside, 1 + 1.1 * half_a_step, -1 - 1.1 * half_a_step, 1e30]).requires_grad_()
    quantizer(x).backward(torch.full_like(x, 2.0))
    assert x.grad.tolist() == [2.0] * len(inside) + [0.0] * 3


def test_other_forms():
    with pytest.raises(ValueError, match="a float8 Quantizer is e4m3 or e5m2, not 'e3m4'"):
        Float8Quantizer("e3m4")
