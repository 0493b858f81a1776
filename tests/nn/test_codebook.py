"""CodebookQuantizer: binary, ternary, APoT and k-means against numpy, and their gradients."""

import numpy as np
import pytest
import torch

from fxcompress.nn import CodebookQuantizer, Layout
from fxcompress.nn.levels import apot, kmeans


def weight(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def groups(x, size):
    """Return the values of each output channel in runs of `size`."""
    return [row[start : start + size] for row in x.reshape(len(x), -1) for start in range(0, row.size, size)]


@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 2, 2)])
@pytest.mark.parametrize("size", [1000, 4, 5])  # channels, and groups with and without a short one
def test_binary_and_ternary_against_numpy(shape, size):
    x = weight(*shape)
    x[1] = 0
    layout = Layout.channel(0, 4) if size == 1000 else Layout.group(0, shape, size)
    expected = {"binary": [], "ternary": []}
    for part in groups(x.numpy().astype(np.float64), size):
        magnitude = np.abs(part)
        expected["binary"].append(np.where(part >= 0, 1, -1) * magnitude.mean())
        kept = magnitude > 0.7 * magnitude.mean()
        scale = magnitude[kept].mean() if kept.any() else 0
        expected["ternary"].append(np.sign(part) * kept * scale)
    for form, parts in expected.items():
        quantizer = CodebookQuantizer(form, layout=layout)
        quantizer.fit(x)
        np.testing.assert_allclose(quantizer(x).numpy(), np.concatenate(parts).reshape(shape), rtol=1e-6)
        assert quantizer.scale.shape == layout.shape


def test_binary_by_hand():
    quantizer = CodebookQuantizer("binary", layout=Layout.channel(0, 2))
    x = torch.tensor([[1.0, -2.0, 0.0], [-0.0, 0.5, -0.25]])
    quantizer.fit(x)
    assert quantizer(x).tolist() == [[1, -1, 1], [0.25, 0.25, -0.25]]
    assert quantizer.codes(x).tolist() == [[1, 0, 1], [1, 1, 0]]


@pytest.mark.parametrize("seed", range(5))
def test_the_ternary_threshold_is_exact(seed):
    x = weight(100, seed=seed)
    quantizer = CodebookQuantizer("ternary")
    quantizer.fit(x)
    threshold = 0.7 * x.double().abs().mean()
    near = threshold.float()
    beside = torch.stack([torch.nextafter(near, torch.tensor(0.0)), near, torch.nextafter(near, torch.tensor(9.0))])
    kept = beside.double() > threshold
    assert 0 < kept.sum() < 3
    assert quantizer.codes(beside).tolist() == (1 + kept.int()).tolist()
    assert quantizer.codes(-beside).tolist() == (1 - kept.int()).tolist()


def test_what_is_just_the_threshold_becomes_zero():
    quantizer = CodebookQuantizer("ternary")
    exact = torch.tensor([7.0, 13.0, 5.0, 15.0, -7.0, -13.0])  # their mean magnitude is 10
    quantizer.fit(exact)
    assert quantizer(exact).tolist() == pytest.approx([0, 41 / 3, 0, 41 / 3, 0, -41 / 3])


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_apot_takes_the_nearest_level(bits):
    x, table = weight(8, 32), apot(bits).numpy()
    quantizer = CodebookQuantizer("apot", bits, layout=Layout.channel(0, 8))
    ends = x.abs().amax(1) * 0.8
    quantizer.set_range(-ends / 2, ends)
    distance = np.abs(x.numpy().astype(np.float64)[:, :, None] - ends.numpy()[:, None, None] * table)
    expected = (ends.numpy()[:, None] * table.astype(np.float32)[distance.argmin(2)]).astype(np.float32)
    assert np.array_equal(quantizer(x).numpy(), expected)
    assert np.array_equal(quantizer.codes(x).numpy(), distance.argmin(2))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_kmeans_takes_the_nearest_centroid(bits):
    x = weight(40, 50)
    quantizer = CodebookQuantizer("kmeans", bits)
    quantizer.fit(x)
    levels = kmeans(x, 2**bits).numpy()
    distance = np.abs(x.numpy()[:, :, None].astype(np.float64) - levels)
    assert np.array_equal(quantizer(x).numpy(), levels.astype(np.float32)[distance.argmin(2)])


def test_kmeans_keeps_zeros_and_few_values():
    x = weight(30, 30)
    x[weight(30, 30, seed=1) > 0] = 0
    quantizer = CodebookQuantizer("kmeans", 3)
    quantizer.fit(x)
    assert quantizer(x)[x == 0].eq(0).all()
    few = torch.tensor([0.1, -0.3, 0.7, 1e30, 0.1])[torch.arange(100) % 5]
    quantizer.fit(few)
    assert torch.equal(quantizer(few), few)


def test_kmeans_tells_adjacent_numbers_apart():
    x = torch.tensor([1.0, 1.0 + 2**-23, 1.0 + 2**-22, 1.0 + 3 * 2**-23])
    quantizer = CodebookQuantizer("kmeans", 2)
    quantizer.fit(x)
    assert torch.equal(quantizer(x), x)


@pytest.mark.parametrize(
    ("form", "bits", "passes"),
    [
        ("binary", None, [0, 2, 2, 2, 2, 0]),
        ("ternary", None, [2, 2, 2, 2, 2, 2]),
        ("apot", 4, [0, 2, 2, 2, 2, 0]),
        ("kmeans", 2, [0, 2, 2, 2, 2, 0]),
    ],
)
def test_where_the_gradient_passes(form, bits, passes):
    quantizer = CodebookQuantizer(form, bits)
    ends = torch.tensor([-1.0, -0.25, 0.25, 1.0])
    if form == "apot":
        quantizer.set_range(ends[0], ends[-1])
    else:
        quantizer.fit(ends)
    x = torch.tensor([-1.01, -1.0, -0.2, 0.2, 1.0, 1.01]).requires_grad_()
    quantizer(x).backward(torch.full_like(x, 2.0))
    assert x.grad.tolist() == passes


def test_wrong_forms():
    for form, bits in (("apot", None), ("kmeans", 9), ("apot", 1), ("ternary", 4), ("quaternary", 2)):
        message = f"a codebook is binary, ternary, or apot or kmeans of 2 to 8 bits, not {form} of {bits} bits"
        with pytest.raises(ValueError, match=message):
            CodebookQuantizer(form, bits)
    with pytest.raises(ValueError, match="kmeans is one codebook for the whole tensor, not per channel"):
        CodebookQuantizer("kmeans", 4, layout=Layout.channel(0, 3))


def test_what_makes_them_ready():
    one = torch.ones(())
    with pytest.raises(ValueError, match=r"Quantizer\(ternary, per tensor\) takes no range: .* fit\(weight\)"):
        CodebookQuantizer("ternary").set_range(-one, one)
    with pytest.raises(ValueError, match=r"Quantizer\(apot4, per tensor\) has fixed levels and takes a range: set_"):
        CodebookQuantizer("apot", 4).fit(one)
    with pytest.raises(
        ValueError, match=r"Quantizer\(binary, per tensor\) cannot be fitted to a weight that holds NaN"
    ):
        CodebookQuantizer("binary").fit(torch.tensor([1.0, torch.nan]))
