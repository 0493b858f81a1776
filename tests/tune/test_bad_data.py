"""Data that cannot be tuned on: each step names the batch, the layer or the tensor. Half precision works."""

import pytest
import torch
from torch import nn

import fxcompress
from fxcompress.errors import CompressError, NotReadyError, PassError

LEARNED = [{"ada_round": {"iterations": 5}}, {"block_reconstruction": {"iterations": 5}}]
TUNING = ["bias_correction", *LEARNED, "gptq"]


def tuned(x, tune, dtype=torch.float32, **input):
    """Compress two layers to weights of 4 bits and tune them on two batches, the second of them `x`."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).to(dtype)
    rules = [{"weight": {"bits": 4}, **input}]
    policy = {"version": 1, "steps": [{"kind": "quantize", "rules": rules}], "tune": [tune]}
    return fxcompress.transform(model, policy, data=[images().to(dtype), x.to(dtype)])


def images(value=None):
    x = torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    if value is not None:
        x[0, 0, 0, 0] = value
    return x


@pytest.mark.parametrize("tune", TUNING, ids=str)
def test_nan(tune):
    with pytest.raises(NotReadyError, match=r"^tune: batch 1 of data holds NaN$"):
        tuned(images(torch.nan), tune)


@pytest.mark.parametrize(
    ("tune", "error", "said"),
    [
        ("bias_correction", NotReadyError, r"^tune: bias_correction makes '0\.bias' NaN or infinite: what the model"),
        (
            LEARNED[0],
            NotReadyError,
            r"^tune: the squared error behind '0' is not finite: what enters is NaN, infinite or",
        ),
        (
            LEARNED[1],
            NotReadyError,
            r"^tune: the squared error behind '0' is not finite: what enters is NaN, infinite or",
        ),
        (
            "gptq",
            PassError,
            r"^gptq: '0': its inputs are NaN, infinite or too large to be squared; leave out such data",
        ),
    ],
    ids=str,
)
def test_infinity(tune, error, said):
    with pytest.raises(error, match=said):
        tuned(images(torch.inf), tune)


@pytest.mark.parametrize("tune", [*LEARNED, "gptq"], ids=str)
def test_an_outlier_too_large_to_be_squared(tune):
    with pytest.raises(CompressError, match="too large to be squared"):
        tuned(images(1e30), tune)


@pytest.mark.parametrize("tune", LEARNED, ids=str)
def test_a_batch_without_values(tune):
    with pytest.raises(NotReadyError, match=r"^tune: a batch of data gives no values behind '0'$"):
        tuned(images()[:0], tune)


@pytest.mark.parametrize("tune", TUNING, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(tune, dtype):
    small = tuned(images(), tune, dtype, input={"bits": 8})
    weight = small.get_parameter("0.weight")
    assert weight.dtype is dtype
    assert all(tensor.isfinite().all() for tensor in small.state_dict().values())
    assert small(images().to(dtype)).dtype is dtype
    if tune != "bias_correction":
        torch.testing.assert_close(small.get_submodule("0.weight_quantizer")(weight), weight, rtol=1e-2, atol=1e-3)
