"""AllocatedQuantizer: each channel against numpy, bytes by hand, its state, its gradient and its errors."""

import re

import numpy as np
import pytest
import torch

from fxcompress.errors import NotReadyError
from fxcompress.nn import UniformQuantizer
from fxcompress.nn.allocated import AllocatedQuantizer

BITS = torch.arange(9)  # one channel for each width
X = torch.randn(9, 40, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 2, 9).unsqueeze(1)


def ready(x=X, axis=0, bits=BITS, **form):
    """Return a quantizer with these bits, whose range is the smallest and largest value of each channel."""
    quantizer = AllocatedQuantizer(4, axis=axis, channels=len(bits), **{"symmetric": True, **form})
    quantizer.set_bits(bits)
    rows = x.movedim(axis, 0).flatten(1)
    quantizer.set_range(rows.amin(1), rows.amax(1))
    return quantizer


def reference(row, bits, symmetric):
    """Return a channel rounded in numpy, as the docstring and Jacob et al. 2018 say."""
    row = row.astype(np.float64)
    low, high = min(row.min(), 0), max(row.max(), 0)
    if bits == 0:
        return np.zeros_like(row)
    if bits == 1:
        return np.where(row >= 0, 0.5, -0.5) * np.float32(max(-low, high))
    if symmetric:
        largest = 2 ** (bits - 1) - 1
        scale = np.float32(max(-low, high) / largest)
        return np.clip(np.rint(row / scale), -largest, largest) * scale
    scale = np.float32((high - low) / (2**bits - 1))
    zero = np.rint(-low / ((high - low) / (2**bits - 1)))
    return (np.clip(np.rint(row / scale) + zero, 0, 2**bits - 1) - zero) * scale


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("axis", [0, 1])
def test_each_channel_against_numpy(symmetric, axis):
    x = X.movedim(0, axis)
    found = ready(x, axis, symmetric=symmetric)(x).movedim(axis, 0)
    for bits, (row, rounded) in enumerate(zip(X.numpy(), found.numpy(), strict=True)):
        np.testing.assert_allclose(rounded, reference(row, bits, symmetric), rtol=1e-6, err_msg=f"{bits} bits")
        assert len(np.unique(rounded)) <= 2**bits


@pytest.mark.parametrize("form", [{"narrow": False}, {"power_of_two": True}, {"symmetric": False, "narrow": True}])
def test_forms_are_those_of_the_uniform_quantizer(form):
    form = {"symmetric": True, **form}
    found = ready(**form)(X)
    for bits in range(2, 9):
        uniform = UniformQuantizer(bits, axis=0, channels=1, **form)
        uniform.set_range(X[bits].amin().view(1), X[bits].amax().view(1))
        assert torch.equal(found[bits], uniform(X[bits : bits + 1])[0])


def test_half_precision():
    quantizer = ready()
    for dtype in (torch.float16, torch.bfloat16):
        found = quantizer(X.to(dtype))
        assert found.dtype is dtype
        assert torch.equal(found, quantizer(X.to(dtype).float()).to(dtype))


def test_stored_bytes_by_hand():
    """36 bits for each of 40 values are 180 bytes; nine scales and nine numbers of bits go with them."""
    assert ready().stored_bytes(X.numel()) == 180 + 9 * (4 + 1)
    assert ready(symmetric=False).stored_bytes(X.numel()) == 180 + 9 * (4 + 1 + 1)
    odd = ready(X[:2, :3], bits=torch.tensor([1, 2]))
    assert odd.stored_bytes(6) == 2 + 2 * 5  # nine bits
    assert AllocatedQuantizer(4, symmetric=True, axis=0, channels=2).stored_bytes(6) == 3 + 2 * 5  # as on average


def test_the_gradient_passes_where_nothing_was_clipped():
    quantizer = ready(X[:3], bits=torch.tensor([0, 1, 4]))
    scale = quantizer.scale
    x = torch.stack([torch.tensor([-1.2, -0.9, 0.3, 0.9]), torch.tensor([-1.2, -0.9, 0.3, 0.9]) * scale[1],
                     torch.tensor([-7.6, -7.4, 0.0, 7.4]) * scale[2]]).requires_grad_()  # fmt: skip
    quantizer(x).backward(torch.ones_like(x))
    assert x.grad.tolist() == [[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1]]


def test_its_state_makes_another_one_ready():
    quantizer, fresh = ready(), AllocatedQuantizer(4, symmetric=True, axis=0, channels=9)
    assert set(quantizer.state_dict()) == {"channel_bits", "scale", "zero_point"}
    assert not fresh.ready
    fresh.load_state_dict(quantizer.state_dict())
    assert torch.equal(fresh(X), quantizer(X))


def test_new_bits_forget_the_range():
    quantizer = ready()
    quantizer.set_bits(BITS)
    with pytest.raises(NotReadyError, match=re.escape("Quantizer(int4 on average, per channel) was called before")):
        quantizer(X)


def test_text():
    assert str(ready()) == "Quantizer(int4 on average, per channel)"
    said = "Quantizer(uint4 on average, per channel, power-of-two scales, narrow range)"
    assert str(ready(symmetric=False, narrow=True, power_of_two=True)) == said


def test_wrong_numbers():
    for bits in (1, 9, 16):
        with pytest.raises(ValueError, match=f"channels have 2 to 8 bits on average, not {bits}"):
            AllocatedQuantizer(bits, symmetric=True, axis=0, channels=2)
    quantizer = AllocatedQuantizer(4, symmetric=True, axis=0, channels=2)
    for bits in ([1], [9, 1], [-1, 1]):
        said = f"2 channels take as many numbers from 0 to 8, not {bits}"
        with pytest.raises(ValueError, match=re.escape(said)):
            quantizer.set_bits(torch.tensor(bits))
    with pytest.raises(ValueError, match="a range has finite ends"):
        quantizer.set_range(torch.zeros(2), torch.tensor([1.0, torch.inf]))
