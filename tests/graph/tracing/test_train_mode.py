"""Code that branches on its mode: followed where it drops out or does the same in both modes, and named elsewhere."""

import random
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxcompress.graph import capture, text
from tests.graph.same import model_of

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
EVERY_WAY = pytest.mark.parametrize("way", ["symbolic", "export"])


def function(self, x):
    x = self.fc(x)
    if self.training and self.rate > 0:
        x = F.dropout(x, self.rate)
    return x * 2 + torch.ones(4)


def keyword(self, x):
    x = F.dropout(self.fc(x), p=self.rate, training=self.training)
    return F.dropout(x, self.rate, training=self.training) + F.dropout(x, 0.3)


def both(self, x):
    x = F.dropout(self.fc(x), 0.3)
    if self.training and self.rate > 0:
        x = F.dropout(x, self.rate, training=self.training)
    return x + F.dropout(x, 0.3)


def module(self, x):
    x = self.fc(x)
    y = self.drop(x) if self.training else x
    return x + torch.relu(y)


def path(self, x):
    x = self.fc(x)
    if self.training and self.rate > 0:
        return x * torch.rand(x.shape[0], 1).ge(self.rate)
    return x


def path_in_place(self, x):
    x = self.fc(x)
    if not self.training:
        return x
    return x * x.new_empty(x.shape[0], 1).bernoulli_(1 - self.rate)


def skip(self, x):
    return x if self.training and torch.rand(1) < self.rate else self.fc(x)


def skip_by_python(self, x):
    return x if self.training and random.random() < self.rate else self.fc(x)


def count(self, x):
    if self.training:
        self.steps += 1
    return x if self.training and self.steps > 2 else self.fc(x)


def constant(self, x):
    return self.fc(x) + torch.tensor(1.0 if self.training else 0.5)


def results(self, x):
    x = self.fc(x)
    return (x, x) if self.training else x


def made(forward, rate):
    model = model_of(forward, fc=nn.Linear(4, 4), drop=nn.Dropout(rate))
    model.rate, model.steps = rate, 0
    return nn.Sequential(nn.Linear(4, 4), model)


def computed(model, training):
    torch.manual_seed(0)
    return model.train(training)(X)


@EVERY_WAY
@pytest.mark.parametrize("rate", [0.5, 0.0])
@pytest.mark.parametrize("forward", [function, keyword, both, module])
def test_dropout_in_train_mode_is_followed(forward, rate, way):
    model = made(forward, rate)
    gm = capture(model, X, way=way)  # a warning is an error
    for training in (False, True, False):
        torch.testing.assert_close(computed(gm, training), computed(model, training), rtol=0, atol=0)


def test_a_dropout_that_is_followed_is_a_module(reads):
    reads(
        capture(made(function, 0.5)[1]),
        """
        x: input
        fc = linear(x, fc.weight, fc.bias)
        dropout = Dropout(p=0.5, inplace=False)(fc)
        mul = mul(dropout, 2)
        add = add(mul, _tensor_constant0)
        return add
        """,
    )
    assert "ropout" not in text(capture(made(function, 0.0)[1]))


@EVERY_WAY
def test_a_path_that_is_never_left_out_needs_no_warning(way):
    model = made(path, 0.0)
    gm = capture(model, X, way=way)
    torch.testing.assert_close(computed(gm, True), computed(model, True), rtol=0, atol=0)


@EVERY_WAY
@pytest.mark.parametrize("forward", [path, path_in_place, skip, skip_by_python, count, constant, results])
def test_what_differs_or_may_differ_is_named(forward, way):
    with pytest.warns(UserWarning, match=rf"asks for its mode at .*test_train_mode\.py:{_line(forward)} "):
        capture(made(forward, 0.01), X, way=way)


def _line(forward):
    start = forward.__code__.co_firstlineno
    return rf"({'|'.join(str(start + line) for line in range(1, 5))})"


@EVERY_WAY
@pytest.mark.parametrize("call", [lambda x, on: torch.dropout(x, 0.0, on), lambda x, on: F.rrelu(x, training=on)])
def test_functions_that_take_the_mode_are_followed_or_named(call, way):
    model = model_of(lambda self, x: call(self.fc(x), self.training), fc=nn.Linear(4, 4))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gm = capture(model, X, way=way)
    assert caught or torch.equal(computed(gm, True), computed(model, True))
