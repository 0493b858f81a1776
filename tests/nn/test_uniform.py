"""UniformQuantizer: the numbers against numpy, torch and ONNX Runtime, its gradient and its errors."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from fxcompress.nn import DynamicQuantizer, Layout, UniformQuantizer
from fxcompress.nn.allocated import AllocatedQuantizer

GRIDS = [(bits, symmetric) for bits in (*range(2, 9), 16) for symmetric in (True, False)]
CODES = {(8, True): torch.int8, (8, False): torch.uint8, (16, True): torch.int16, (16, False): torch.uint16}


def ready(bits, symmetric, low=-1.0, high=2.0, **kwargs):
    quantizer = UniformQuantizer(bits, symmetric=symmetric, **kwargs)
    quantizer.set_range(torch.tensor(low), torch.tensor(high))
    return quantizer


def per_channel(bits, symmetric, axis, x):
    """Return a quantizer whose range is the smallest and largest value of each channel of `x`."""
    quantizer = UniformQuantizer(bits, symmetric=symmetric, axis=axis, channels=x.shape[axis])
    rows = x.movedim(axis, 0).flatten(1)
    quantizer.set_range(rows.amin(1), rows.amax(1))
    return quantizer


def interesting(scale, zero_point, low, high):
    """Return values on the grid, ties between two codes, their neighbours, and values far outside."""
    step = max((high - low) // 256, 1)  # of 16 bits not every code
    ends = torch.cat([torch.arange(low - 3, low + 4), torch.arange(high - 3, high + 4)])
    codes = torch.cat([ends, torch.arange(low, high, step)]).float() - zero_point
    grid, ties = codes * scale, (codes + 0.5) * scale
    beside = [torch.nextafter(ties, torch.tensor(end)) for end in (-torch.inf, torch.inf)]
    return torch.cat([grid, ties, *beside, torch.tensor([0.0, -0.0, 1e30, -1e30, 1e-30]), torch.randn(500)])


def reference(x, quantizer):
    """Return codes and values in numpy with the same float type as `x`, as the Quantizer's docstring says."""
    shape = [1] * x.dim()
    if quantizer.axis is not None:
        shape[quantizer.axis] = -1
    scale = quantizer.scale.numpy().astype(x.numpy().dtype).reshape(shape if quantizer.axis is not None else ())
    zero_point = quantizer.zero_point.numpy().reshape(scale.shape)
    codes = np.clip(np.rint(x.numpy() / scale) + zero_point, quantizer.low, quantizer.high)
    return codes, (codes - zero_point).astype(scale.dtype) * scale


@pytest.mark.parametrize(("bits", "symmetric"), GRIDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_numpy(bits, symmetric, dtype):
    quantizer = ready(bits, symmetric)
    x = interesting(quantizer.scale, quantizer.zero_point, quantizer.low, quantizer.high).to(dtype)
    codes, values = reference(x, quantizer)
    found = quantizer(x)
    assert found.dtype is dtype
    assert np.array_equal(found.numpy(), values)
    assert np.array_equal(quantizer.codes(x).numpy(), codes)
    assert quantizer.codes(x).dtype is CODES[max(bits, 8), symmetric]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("bits", "symmetric"), [(2, True), (4, False), (8, True)])
def test_per_channel_against_numpy(bits, symmetric, axis):
    x = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    x.select(axis, 1).zero_()
    quantizer = per_channel(bits, symmetric, axis, x)
    codes, values = reference(x, quantizer)
    assert np.array_equal(quantizer(x).numpy(), values)
    assert np.array_equal(quantizer.codes(x).numpy(), codes)
    assert quantizer(x).select(axis, 1).eq(0).all()


@pytest.mark.parametrize(("bits", "symmetric"), GRIDS)
def test_against_torch(bits, symmetric):
    # torch multiplies by the inverse of the scale, which decides ties differently
    quantizer = ready(bits, symmetric)
    x = 3 * torch.randn(1000, generator=torch.Generator().manual_seed(0))
    position = x / quantizer.scale
    x = x[((position - position.floor()) - 0.5).abs() > 1e-3]
    scale, zero_point = quantizer.scale.item(), int(quantizer.zero_point)
    expected = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, quantizer.low, quantizer.high)
    torch.testing.assert_close(quantizer(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("axis", [0, 1])
def test_per_channel_against_torch(axis):
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)) + 0.01
    quantizer = per_channel(4, False, axis, x)
    expected = torch.fake_quantize_per_channel_affine(x, quantizer.scale, quantizer.zero_point, axis, 0, 15)
    torch.testing.assert_close(quantizer(x), expected, rtol=0, atol=0)


def in_onnx_runtime(x, quantizer, **attributes):
    """Return the values and codes of QuantizeLinear, Clip where codes are left out, and DequantizeLinear."""
    types = {True: np.int8, False: np.uint8} if quantizer.bits <= 8 else {True: np.int16, False: np.uint16}
    code_type = types[quantizer.symmetric]
    named = {
        "scale": quantizer.scale.numpy(),
        "zero": quantizer.zero_point.numpy().astype(code_type),
        "low": np.array(quantizer.low, code_type),
        "high": np.array(quantizer.high, code_type),
    }
    whole = (quantizer.low, quantizer.high) == (np.iinfo(code_type).min, np.iinfo(code_type).max)
    axis = attributes if quantizer.axis is None else {"axis": quantizer.axis} | attributes
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes" if whole else "raw"], **axis),
        *([] if whole else [helper.make_node("Clip", ["raw", "low", "high"], ["codes"])]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["y"], **axis),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(x.shape)) for name in "xy"]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(code_type))
    codes = helper.make_tensor_value_info("codes", kind, list(x.shape))
    constants = [onnx.numpy_helper.from_array(value, name) for name, value in named.items()]
    graph = helper.make_graph(nodes, "quantize", ends[:1], [*ends[1:], codes], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x.numpy()})


FULL = [(bits, True, False) for bits in (2, 8, 16)]  # with the lowest code
NARROW = [(bits, False, True) for bits in (2, 8)]
IN_ENGINE = [(*grid, grid[1]) for grid in GRIDS if grid != (16, True)]  # the engine has no Clip for int16


@pytest.mark.parametrize(("bits", "symmetric", "narrow"), IN_ENGINE + FULL + NARROW)
@pytest.mark.parametrize("ends", [(-1.0, 2.0), (-0.3, 0.0), (0.0, 7.0)])
def test_bit_for_bit_as_onnx_runtime(bits, symmetric, narrow, ends):
    quantizer = ready(bits, symmetric, *ends, narrow=narrow)
    x = interesting(quantizer.scale, quantizer.zero_point, quantizer.low, quantizer.high)
    values, codes = in_onnx_runtime(x, quantizer)
    assert np.array_equal(quantizer(x).numpy(), values)
    assert np.array_equal(quantizer.codes(x).numpy(), codes)


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (8, False), (16, False)])
@pytest.mark.parametrize("columns", [12, 10])
def test_groups_bit_for_bit_as_blocks_in_onnx_runtime(bits, symmetric, columns):
    x = torch.randn(5, columns, generator=torch.Generator().manual_seed(2))
    x[3, 4:8] = 0
    quantizer = UniformQuantizer(bits, symmetric=symmetric, layout=Layout.group(0, x.shape, 4))
    rows = quantizer.layout.rows(x)
    quantizer.set_range(rows.amin(1), rows.amax(1))
    values, codes = in_onnx_runtime(1.5 * x, quantizer, axis=1, block_size=4)
    assert np.array_equal(quantizer(1.5 * x).numpy(), values)
    assert np.array_equal(quantizer.codes(1.5 * x).numpy(), codes)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("bits", "symmetric"), [(2, True), (3, False), (8, True), (8, False)])
def test_per_channel_bit_for_bit_as_onnx_runtime(bits, symmetric, axis):
    x = torch.randn(4, 4, 3, generator=torch.Generator().manual_seed(1))
    x.select(axis, 2).zero_()
    quantizer = per_channel(bits, symmetric, axis, x)
    values, codes = in_onnx_runtime(1.5 * x, quantizer)
    assert np.array_equal(quantizer(1.5 * x).numpy(), values)
    assert np.array_equal(quantizer.codes(1.5 * x).numpy(), codes)


@pytest.mark.parametrize("bits", [*range(2, 9), 16])
def test_ranges(bits):
    symmetric, affine = ready(bits, True, -1.0, 2.0), ready(bits, False, -1.0, 2.0)
    assert symmetric.scale == np.float32(2.0 / (2 ** (bits - 1) - 1))
    assert symmetric.zero_point == 0
    assert affine.scale == np.float32(3.0 / (2**bits - 1))
    assert affine.zero_point == round((2**bits - 1) / 3)
    assert (symmetric.dtype_name, affine.dtype_name) == (f"int{bits}", f"uint{bits}")


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_narrow_and_full_ranges(bits):
    """A full symmetric range has the same steps and one code more; a narrow affine one has a step less."""
    full, narrow = ready(bits, True, narrow=False), ready(bits, False, narrow=True)
    assert (full.low, full.high) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert full.scale == ready(bits, True).scale
    assert (narrow.low, narrow.high) == (1, 2**bits - 1)
    assert narrow.scale == np.float32(3.0 / (2**bits - 2))
    assert narrow.codes(torch.tensor([-9.0, 9.0])).tolist() == [1, 2**bits - 1]
    assert full.codes(torch.tensor([-9.0, 9.0])).tolist() == [full.low, full.high]
    assert str(full) == f"Quantizer(int{bits}, per tensor, full range)"
    assert str(narrow) == f"Quantizer(uint{bits}, per tensor, narrow range)"


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_power_of_two_scales_against_numpy(bits):
    """Qm.n numbers: integer bits hold the largest magnitude, the rest are fraction bits (Lai et al. 2018)."""
    x = torch.tensor([[0.3, -0.2], [1.0, -1.0], [-1.5, 0.1], [4.0, 3.9], [5e-4, 0.0], [0.0, 0.0]])
    quantizer = UniformQuantizer(bits, symmetric=True, axis=0, channels=6, power_of_two=True)
    quantizer.set_range(x.amin(1), x.amax(1))
    largest = np.abs(x.numpy().astype(np.float64)).max(1)[:5]
    fraction_bits = bits - 1 - np.ceil(np.log2(largest))
    assert np.array_equal(quantizer.scale[:5].numpy(), 2.0**-fraction_bits)
    limit = 2 ** (bits - 1) - 1
    codes = np.clip(np.rint(x[:5].numpy() * 2.0 ** fraction_bits[:, None]), -limit, limit)
    assert np.array_equal(quantizer.codes(x)[:5].numpy(), codes)
    assert quantizer(x)[5].tolist() == [0, 0]
    assert str(quantizer) == f"Quantizer(int{bits}, per channel, power-of-two scales)"


@pytest.mark.parametrize(("low", "high", "scale"), [(-1.0, 2.0, 4 / 256), (0.0, 1.0, 1 / 256), (-0.5, 0.5, 1 / 256)])
def test_power_of_two_scales_with_a_zero_point(low, high, scale):
    quantizer = UniformQuantizer(8, symmetric=False, power_of_two=True)
    quantizer.set_range(torch.tensor(low), torch.tensor(high))
    assert quantizer.scale.item() == scale
    assert quantizer.zero_point.item() == round(-low / scale)
    assert quantizer(torch.tensor([0.0, high])).tolist() == pytest.approx([0.0, high], abs=scale)


@pytest.mark.parametrize(("low", "high", "code_of_zero"), [(1.0, 3.0, 0), (-3.0, -1.0, 255), (0.0, 0.0, 0)])
def test_a_range_is_widened_to_zero(low, high, code_of_zero):
    quantizer = ready(8, False, low, high)
    assert quantizer.zero_point == code_of_zero
    assert quantizer(torch.zeros(1)) == 0
    assert quantizer(torch.tensor(high)) == pytest.approx(high)


def test_a_range_too_small_for_float32_keeps_a_scale():
    quantizer = ready(8, True, -1e-45, 1e-45)
    assert quantizer.scale > 0
    assert quantizer(torch.tensor([1e-45, 0.0])).isfinite().all()


def test_a_range_has_finite_ends():
    with pytest.raises(ValueError, match=r"a range has finite ends, not 0\.0 and inf"):
        ready(8, True, 0.0, float("inf"))


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_gradient_passes_where_nothing_was_clipped(symmetric):
    quantizer = ready(4, symmetric, -1.0, 1.0)
    low, high = quantizer.low, quantizer.high
    codes = torch.tensor([low - 0.6, low - 0.4, low, 0.0 if symmetric else 7.0, high, high + 0.4, high + 0.6])
    x = ((codes - quantizer.zero_point) * quantizer.scale).requires_grad_()
    quantizer(x).backward(torch.full_like(x, 2.0))
    assert x.grad.tolist() == [0, 2, 2, 2, 2, 2, 0]


def test_half_precision_is_rounded_in_single():
    x = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    for quantizer in (ready(8, True), per_channel(8, True, 0, x)):
        for dtype in (torch.float16, torch.bfloat16):
            found = quantizer(x.to(dtype))
            assert found.dtype is dtype
            assert torch.equal(found, quantizer(x.to(dtype).float()).to(dtype))
            assert torch.equal(quantizer.codes(x.to(dtype)), quantizer.codes(x.to(dtype).float()))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_ends_of_half_precision_saturate(bits):
    """With 0.5 rounded to a zero point, the grid of -65504 .. 65504 ends half a step beyond what float16 holds."""
    x = torch.tensor([[-65504.0, 65504.0, 1.0]]).half()
    allocated = AllocatedQuantizer(bits, symmetric=False, axis=0, channels=1)
    allocated.set_bits(torch.tensor([bits]))
    allocated.set_range(x.amin().view(1), x.amax().view(1))
    fixed = ready(bits, False, -65504.0, 65504.0)
    for quantizer in (fixed, DynamicQuantizer(bits), allocated):
        wide = quantizer(x.float()) if quantizer is fixed else fixed(x.float())
        assert wide.abs().max() > 65504
        assert quantizer(x)[0, :2].tolist() == wide.clamp(-65504, 65504)[0, :2].half().tolist()


def test_wrong_arguments():
    for bits in (1, 9, 15, 17):
        with pytest.raises(ValueError, match=f"a Quantizer has 2 to 8 bits, or 16, not {bits}"):
            UniformQuantizer(bits, symmetric=True)
    with pytest.raises(ValueError, match="needs both `axis` and `channels`, a per-tensor one neither"):
        UniformQuantizer(4, symmetric=True, axis=0)
