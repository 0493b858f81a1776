"""A small trained-looking model, its data, and policies that leave it open."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    """A convolution with a norm, and two linear layers."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv1d(2, 4, 3, padding=1, bias=False), nn.BatchNorm1d(4)
        self.fc, self.head = nn.Linear(32, 8), nn.Linear(8, 3)

    def forward(self, x):
        y = torch.relu(self.bn(self.conv(x))).flatten(1)
        return self.head(torch.relu(self.fc(y)))


@pytest.fixture
def model():
    """Return the model with statistics in its norm, in eval mode."""
    torch.manual_seed(0)
    net = Net().eval()
    nn.init.uniform_(net.bn.running_var, 0.5, 2)
    nn.init.normal_(net.bn.running_mean)
    return net


@pytest.fixture
def given(model):
    """Return data labelled by the model itself, so that it sits in a minimum, and the loss."""
    generator = torch.Generator().manual_seed(1)
    x = [torch.randn(8, 2, 8, generator=generator) for _ in range(2)]
    with torch.no_grad():
        return {"data": [(one, model(one).argmax(1)) for one in x], "loss": F.cross_entropy}


@pytest.fixture
def policy():
    """Return a function that gives a policy with open bits and sparsity for some budgets."""

    def build(*, bits=(2, 4, 8), inputs=8, sparsity=(0.0, 0.5), **budgets):
        def open_or_not(value):
            return list(value) if isinstance(value, tuple) else value

        rule = {"weight": {"bits": open_or_not(bits)}}
        if inputs is not None:
            rule["input"] = {"bits": open_or_not(inputs)}
        steps = ["fold_batch_norm", {"kind": "quantize", "rules": [rule]}]
        if sparsity is not None:
            steps.append({"kind": "prune", "rules": [{"sparsity": open_or_not(sparsity)}]})
        return {"version": 1, "steps": steps} | ({"search": {"budgets": budgets}} if budgets else {})

    return build
