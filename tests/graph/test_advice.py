"""Advice: what helps where a model cannot be followed, for errors that come from real models."""

import pytest
import torch
from torch import nn

from fxcompress.errors import CaptureError
from fxcompress.graph import capture
from fxcompress.graph.advice import advice
from fxcompress.graph.coverage import coverage


def branches(self, x):
    return x if x.sum() > 0 else -x


def repeats(self, x):
    while x.sum() < 10:
        x = x * 2
    return x


def iterates(self, x):
    return torch.stack([row * 2 for row in x])


def measures(self, x):
    return x * len(x)


def counts(self, x):
    for _ in range(x.shape[0]):
        x = x + 1
    return x


def assigns(self, x):
    self.mean = self.mean + x.mean()
    return x - self.mean


def shares(self, x):
    y = x * 2
    y[0].add_(1)
    return y


def leaves(self, x):
    return x * float(x.sum().item())


def builds(self, x):
    return nn.Linear(2, 2)(x)


ELSE = "move the code that cannot be followed into a small module of its own; the modules around it can be captured"


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (branches, "choose with torch.where instead of `if` on a tensor's value, or move this code out"),
        (repeats, "choose with torch.where instead of `if` on a tensor's value, or move this code out"),
        (iterates, "loop over a number that the module knows, such as range(len(self.layers)), not over a tensor"),
        (measures, "use x.shape[0] instead of len(x)"),
        (counts, "take sizes from the module's own attributes instead of from the input's shape"),
        (assigns, "change the buffer in place: self.buffer.copy_(value)"),
        (shares, "compute it out of place: x = x + y instead of x += y"),
        (leaves, "stay in torch: what leaves it for Python or numpy cannot be followed"),
        (builds, ELSE),
    ],
)
def test_code_that_cannot_be_followed(forward, expected, model):
    with pytest.raises(CaptureError) as caught:
        capture(model(forward, mean=torch.zeros(())), torch.ones(2, 2), way="symbolic")
    assert advice(caught.value).startswith(expected)


@pytest.mark.parametrize("forward", [branches, repeats])
def test_code_that_cannot_be_exported(forward, model):
    with pytest.raises(CaptureError) as caught:
        capture(model(forward), torch.ones(2, 2), way="export")
    assert advice(caught.value).startswith("choose with torch.where")


def test_a_hook(model):
    net = nn.Sequential(nn.Linear(2, 2))
    net[0].register_forward_hook(lambda *_: None)
    with pytest.raises(CaptureError) as caught:
        capture(net, torch.ones(2, 2), way="symbolic")
    assert advice(caught.value) == "remove the hook before capturing: handle.remove()"


def test_modules_that_are_not_seen(model):
    net = model(lambda self, x: self.rnn(x)[0], rnn=nn.LSTM(2, 2), unused=nn.Linear(3, 3))
    found = {unseen.name: unseen.advice for unseen in coverage(capture(net, torch.ones(3, 2), way="symbolic")).unseen}
    assert found == {
        "rnn": "capture by export, which looks into it: capture(model, example_inputs, way='export')",
        "unused": "nothing: it has no part in the result",
    }


@pytest.mark.parametrize("folder", ["hooks", "numpy", "len", "in place"])
def test_the_place_of_the_code_says_nothing(folder):
    place = f"/home/me/{folder}/model.py:3"
    error = CaptureError(f"Net cannot be traced at {place} (y = f(x)): no", place=place, line="y = f(x)")
    assert advice(error) == ELSE
