"""What every pass test does: apply a step and verify, and compare a graph with a text."""

from textwrap import dedent

import pytest

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
