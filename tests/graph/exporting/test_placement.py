"""Placement: a graph by export follows its model to other devices and dtypes, where the model does."""

import copy

import pytest
import torch
from torch import nn

from tests.graph.exporting.exported import X, exported, lines


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


def test_lines_of_dtypes_without_a_match_stay():
    class Converts(nn.Module):
        def forward(self, x):
            if x.dtype == torch.bfloat16:
                return x.float().to(x.dtype)
            return x.to(x.dtype) * 2

    gm = exported(nn.Sequential(nn.Linear(4, 4), Converts()), X)
    assert [line for line in lines(gm) if "to.dtype" in line] == ["_1_to = to.dtype(_0, torch.float32)"]
