"""A small network with batch norm and residual, its data, and policies that tune it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.b(F.relu(self.a(x))))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        for _ in range(20):  # statistics that are not the initial ones
            model(torch.randn(16, 3, 8, 8))
        model.norm.weight.uniform_(0.5, 2).mul_(torch.tensor([1, -1] * 4))
        model.norm.bias.normal_()
    return model.eval()


@pytest.fixture
def images():
    return list(torch.randn(4, 16, 3, 8, 8, generator=torch.Generator().manual_seed(1)))


@pytest.fixture
def tuned():
    """Return the policy of weights and inputs with some bits that is tuned by some steps."""

    def policy(*steps, weight=3, input=8):
        rules = [
            {"select": {"ops": ["conv2d", "linear", "add"]}, "weight": {"bits": weight}, "input": {"bits": input}}
        ]
        quantize = {"kind": "quantize", "rules": rules}
        return {"version": 1, "steps": ["fold_batch_norm", quantize], "tune": list(steps)}

    return policy
