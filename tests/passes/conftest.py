"""What every pass test does: apply a step and verify, and compare a graph with a text."""

from textwrap import dedent

import pytest
from torch import nn

from fxcompress import graph
from fxcompress.passes import apply


@pytest.fixture
def do():
    """Return a function that applies steps to a graph, verifying after each."""

    def run(gm, *steps):
        for step in steps:
            apply(step, gm)
            graph.verify(gm)
        return gm

    return run


@pytest.fixture
def reads():
    """Return a function that tells whether a graph reads as the given text."""

    def compare(gm, text):
        assert graph.text(gm) == dedent(text).strip()

    return compare


class _Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)

    def forward(self, x):
        return self.a(x) + self.b(x)


class _Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(self.a(x)))


@pytest.fixture
def residual():
    """Return two layers that share the input, and an add that joins what they make."""
    return _Residual()


@pytest.fixture
def tied():
    """Return two layers with one weight, the first of them called twice."""
    return _Tied()
