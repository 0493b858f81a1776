"""equalize: what cannot be scaled is left alone, and where nothing can it says why."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxcompress.errors import PassError
from fxcompress.graph import capture
from fxcompress.policies import Equalize, Prune, Quantize

SCALE = Equalize()


class Doubled(nn.Module):
    """What a convolution gives is used twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        y = self.a(x)
        return self.b(y) + y.sum()


class Tied(nn.Module):
    """Two layers with one weight, then another."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.c(F.relu(self.b(F.relu(self.a(x)))))


class Again(nn.Module):
    """One layer called twice."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3)

    def forward(self, x):
        return self.a(F.relu(self.a(x)))


class Bound(nn.Module):
    """A weight that the model reads elsewhere too."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.b(F.relu(self.a(x))) + self.a.weight.sum()


def pair(*between):
    return nn.Sequential(nn.Conv2d(2, 4, 1), *between, nn.Conv2d(4, 2, 1))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Doubled(), "'a' goes to 2 places; 'b' goes into 'add'"),
        (Tied(), "the parameters of 'a' are computed or serve something else too"),
        (Again(), "the parameters of 'a' are computed or serve something else too"),
        (Bound(), "the parameters of 'a' are computed or serve something else too"),
        (pair(nn.GELU()), "'_0' goes into '_1'"),
        (pair(nn.Hardtanh()), "'_0' goes into '_1'"),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 2)), "'_0' goes into '_1'"),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Linear(2, 2)), "'_0' does not go channel by channel"),
        (nn.Sequential(nn.Embedding(3, 2)), "the model has no layer of kind linear, conv1d, "),
    ],
    ids=["two readers", "tied", "twice", "read", "gelu", "hardtanh", "flat", "along positions", "no layer"],
)
def test_nothing_to_equalize(model, reason, do):
    gm = capture(model)
    state = copy.deepcopy(gm.state_dict())
    message = f"equalize: there is nothing to equalize: {reason}"
    with pytest.raises(PassError, match=f"{re.escape(message)}.*; take equalize out of the policy"):
        do(gm, SCALE)
    assert all(torch.equal(value, gm.state_dict()[name]) for name, value in state.items())


def test_norms_that_are_not_folded(do):
    net = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    message = "'_0' goes into '1' (BatchNorm2d); '_3' goes into the output"
    with pytest.raises(PassError, match=f"{re.escape(message)}; state fold_batch_norm before it"):
        do(capture(net.eval()), SCALE)


@pytest.mark.parametrize(
    ("step", "what"),
    [
        (Quantize(rules=({"weight": {"bits": 4}},)), r"the weight of '0' already has Quantizer\(int4, per channel\)"),
        (Prune(rules=({"sparsity": 0.5},)), r"the weight of '0' already has Mask\(50% zeros\)"),
        (Quantize(rules=({"input": {"bits": 8}},)), r"tensor '_1' already has Quantizer\(uint8, per tensor\)"),
    ],
    ids=["weight", "mask", "input"],
)
def test_after_another_step(step, what, do):
    with pytest.raises(PassError, match=f"equalize: {what} from an earlier step; state equalize before it"):
        do(capture(pair(nn.ReLU())), step, SCALE)


def test_relu6_that_stays_is_not_crossed(do):
    with pytest.raises(PassError, match="'_0' goes into '_1'"):
        do(capture(pair(nn.ReLU6())), Equalize(replace_relu6=False))
