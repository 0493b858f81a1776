"""Gradients of a model's own making: no way of capture loses them without a word."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from fxcompress.errors import CaptureError
from fxcompress.graph import capture
from fxcompress.graph.coverage import coverage
from tests.graph.same import model_of, same


class Round(torch.autograd.Function):
    """Rounding whose gradient passes straight through."""

    @staticmethod
    def forward(ctx, x):
        return torch.round(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def through_a_function(self, x):
    return self.b(Round.apply(self.a(x) * 10))


def through_a_hook(self, x):
    y = self.a(x)
    if y.requires_grad:
        y.register_hook(lambda gradient: gradient * 5)
    return self.b(y)


@pytest.mark.parametrize("forward", [through_a_function, through_a_hook])
def test_auto_keeps_them(forward):
    gm = same(model_of(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4)), torch.randn(2, 4))
    assert coverage(gm).way == "islands"


@pytest.mark.parametrize("way", ["symbolic", "export"])
def test_an_autograd_function_is_refused(way):
    original = model_of(through_a_function, a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    with pytest.raises(CaptureError, match=r"autograd function Round at .*Round\.apply.*would lose its gradient"):
        capture(original, torch.randn(2, 4), way=way)


def test_a_hook_on_a_tensor_is_refused():
    original = model_of(through_a_hook, a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    with pytest.raises(CaptureError, match=r"registers a hook on a tensor at .*register_hook"):
        capture(original, torch.randn(2, 4), way="export")
    assert torch.Tensor.register_hook.__module__ != "fxcompress.graph.tracing.gradients"


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("way", ["symbolic", "export", "islands"])
def test_reentrant_checkpoints(way):
    def forward(self, x):
        return self.c(checkpoint(self.b, self.a(x), use_reentrant=True))

    original = model_of(forward, a=nn.Linear(4, 4), b=nn.Sequential(nn.Linear(4, 4), nn.ReLU()), c=nn.Linear(4, 4))
    same(original, torch.randn(2, 4), way=way)


@pytest.mark.parametrize("way", ["symbolic", "export", "islands"])
def test_parts_that_a_train_method_keeps_in_eval_mode_stay_there(way):
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

        def train(self, mode=True):
            super().train(mode)
            self.norm.eval()
            return self

        def forward(self, x):
            return self.b(self.norm(self.a(x)))

    model, x = Frozen(), torch.randn(3, 4)
    gm = copy.deepcopy(capture(model, x, way=way))
    assert torch.equal(gm.train()(x), model.train()(x))
    assert gm.get_submodule("norm").running_mean.tolist() == [0, 0, 0, 0]


def test_an_extra_state_stays_with_the_model():
    class Versioned(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x)

        def get_extra_state(self):
            return {"version": 1}

        def set_extra_state(self, state):
            pass

    gm = capture(Versioned(), torch.randn(2, 4))
    assert coverage(gm).way == "islands"
    gm.load_state_dict(Versioned().state_dict())
    with pytest.raises(CaptureError, match="the model has an extra state, which a graph cannot keep"):
        capture(Versioned(), torch.randn(2, 4), way="symbolic")


def test_packed_sequences_stay_in_python():
    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True)
        return self.head(self.r(packed)[1][0][-1])

    original = model_of(forward, r=nn.LSTM(4, 3, batch_first=True), head=nn.Linear(3, 2))
    gm = capture(original, (torch.randn(2, 5, 4), torch.tensor([5, 3])))
    x, lengths = torch.randn(3, 6, 4), torch.tensor([6, 4, 1])
    assert torch.equal(gm(x, lengths), original(x, lengths))
    assert [one.name for one in coverage(gm).unseen] == ["r"]
