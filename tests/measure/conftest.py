"""What an observer may ask of a quantizer."""

import pytest

from fxcompress.nn import UniformQuantizer


@pytest.fixture
def form():
    """Return a function that makes the form of a uniform quantizer."""

    def make(bits, *, symmetric=False, power_of_two=False):
        return UniformQuantizer(bits, symmetric=symmetric, power_of_two=power_of_two)

    return make
