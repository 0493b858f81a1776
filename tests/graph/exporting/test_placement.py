"""Placement: a graph by export follows its model to other devices and dtypes, where the model does."""

import copy

import pytest
import torch
from torch import nn

from fxcompress.graph import capture
from tests.graph.exporting.exported import X, exported, lines
from tests.graph.same import model_of


class RootMeanSquare(nn.Module):
    """A norm in single precision inside a model of any precision, with a mask of the model's lowest number."""

    def __init__(self):
        super().__init__()
        self.weight, self.fc = nn.Parameter(torch.rand(4)), nn.Linear(4, 4)

    def forward(self, x):
        kept = x.dtype
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        x = x + self.fc(self.weight * y.to(kept))
        mask = torch.zeros(4, dtype=x.dtype, device=x.device).masked_fill(
            torch.arange(4, device=x.device) > 2, torch.finfo(x.dtype).min
        )
        return torch.clamp(x + mask, min=-1e3), torch.full((2,), 0.1, dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtypes_of_the_model_follow_it_and_others_stay(dtype):
    model = RootMeanSquare().eval()
    gm = copy.deepcopy(exported(model, X)).to(dtype)
    expected = model.to(dtype)(X.to(dtype))
    assert [one.dtype for one in expected] == [dtype, torch.float32]
    torch.testing.assert_close(gm(X.to(dtype)), expected, rtol=0, atol=0)


def test_the_devices_of_the_model_follow_it():
    gm = exported(RootMeanSquare(), X).to("meta")
    assert gm(X.to("meta"))[0].device.type == "meta"


def masked(x, weight):
    """Make masks of the dtypes of an input and a parameter in a function of its own, one literal among them."""
    lowest = torch.full((4, 4), torch.finfo(x.dtype).min, dtype=x.dtype, device=x.device).triu(1)
    rates = torch.linspace(0, 1, 4, dtype=weight.dtype) + torch.arange(4).type_as(x) + torch.arange(4).to(x)
    return x + lowest[1] * 1e-3 + rates, torch.ones(4, dtype=torch.float32).to(x)


class Factories(nn.Module):
    """Tensors made in the dtype of an input or a parameter, and one whose dtype is written in the code."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        n, dtype = x.shape[0], next(self.parameters()).dtype
        x = self.fc(x.to(dtype)) + torch.full((n, 4), 0.1, dtype=x.dtype) + torch.zeros(4, dtype=self.fc.weight.dtype)
        x = x + x.new_zeros(4) + x.new_full((n, 4), 0.3) + torch.ones_like(x, dtype=dtype)
        y, ones = masked(x, self.fc.weight)
        y = y.softmax(-1, dtype=torch.float32).to(x.dtype) + torch.finfo(dtype).eps
        for step in range(3):
            y = self.fc(y) / torch.full((4,), step + 1.0, dtype=dtype).clamp(min=torch.finfo(dtype).tiny)
        return y, ones, torch.zeros(4, dtype=torch.float32), y.sum(0, dtype=x.dtype)


@pytest.mark.parametrize("own", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_made_in_a_dtype_of_the_model_follow_it(own, dtype):
    model = Factories().to(own).eval()
    gm = capture(model, X.to(own), way="export").to(dtype)
    expected, found = model.to(dtype)(X.to(dtype)), gm(X.to(dtype))
    assert expected[0].dtype == dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_masks_of_attention_follow_the_model(dtype):
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()

    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(3, dtype=x.dtype)
        return self.layer(x[None], src_mask=mask) + self.layer(x[None], src_key_padding_mask=(x.sum(-1) > 9)[None])

    model = model_of(forward, layer=layer)
    gm = copy.deepcopy(exported(model, X, modes=[False])).to(dtype)
    torch.testing.assert_close(gm(X.to(dtype)), model.to(dtype)(X.to(dtype)), rtol=1e-2, atol=1e-3)


def test_a_branch_on_half_precision_does_not_hinder():
    def forward(self, x):
        x = self.fc(x)
        if x.dtype in (torch.float16, torch.bfloat16):
            x = x.clamp(torch.finfo(x.dtype).min, torch.finfo(x.dtype).max)
        return x + torch.ones(4, dtype=x.dtype)

    model = model_of(forward, fc=nn.Linear(4, 4))
    gm = copy.deepcopy(exported(model, X)).half()
    torch.testing.assert_close(gm(X.half()), model.half()(X.half()), rtol=0, atol=0)


def test_a_model_that_runs_in_few_dtypes():
    def forward(self, x):
        if x.dtype == torch.float64:
            raise TypeError("no double precision")
        return self.fc(x) + torch.ones(4, dtype=x.dtype)

    model = model_of(forward, fc=nn.Linear(4, 4))
    gm = copy.deepcopy(exported(model, X)).half()
    assert gm(X.half()).dtype == torch.float16


def test_lines_of_dtypes_without_a_match_stay():
    class Converts(nn.Module):
        def forward(self, x):
            if x.dtype == torch.float64:
                return x.float().to(x.dtype)
            return x.to(x.dtype) * 2

    gm = exported(nn.Sequential(nn.Linear(4, 4), Converts()), X)
    assert [line for line in lines(gm) if "to.dtype" in line] == ["_1_to = to.dtype(_0, torch.float32)"]
