"""What the zoo is made of: named models, each built on demand with inputs of two batch sizes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.zoo.liven import liven


class Case(NamedTuple):
    """A model in eval mode, the inputs that it is captured with, new ones of the same shapes, and a larger batch."""

    model: nn.Module
    example_inputs: Any
    new_inputs: Any
    larger_inputs: Any


class Entry(NamedTuple):
    """A model of the zoo; `build` takes no argument and draws random weights and inputs."""

    library: str
    family: str
    name: str
    build: Callable[[], Case]


def case(model: nn.Module, inputs: Callable[[int], Any], batch: int = 2) -> Case:
    """Return a model with inputs for `batch` and for `batch` + 1 samples, its random weights livened."""
    found = Case(model.eval(), inputs(batch), inputs(batch), inputs(batch + 1))
    liven(model, found.example_inputs)
    return found


def images(size: int, channels: int = 3) -> Callable[[int], Tensor]:
    """Return the inputs of an image model: `size` pixels each way."""
    return lambda batch: torch.randn(batch, channels, size, size)
