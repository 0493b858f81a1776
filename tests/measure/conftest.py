"""What an observer may ask of a quantizer, without one."""

from types import SimpleNamespace

import pytest


@pytest.fixture
def form():
    """Return a function that makes the form of a uniform quantizer."""

    def make(bits, *, symmetric=False, power_of_two=False):
        return SimpleNamespace(bits=bits, symmetric=symmetric, power_of_two=power_of_two, narrow=symmetric)

    return make
