"""What every test of a graph does: build a small model from a forward, and compare a graph with a text."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from textwrap import dedent
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxcompress import graph


@pytest.fixture
def model() -> Callable[..., nn.Module]:
    """Return a function that makes a model of a forward, modules, parameters and buffers."""

    def make(forward: Callable[..., Any], **parts: Any) -> nn.Module:
        made = type("Model", (nn.Module,), {"forward": forward})()
        for name, part in parts.items():
            if isinstance(part, nn.Module | nn.Parameter):
                setattr(made, name, part)
            else:
                made.register_buffer(name, part)
        return made

    return make


@pytest.fixture
def reads() -> Callable[..., None]:
    """Return a function that tells whether a graph reads as the given text."""

    def compare(gm, text):
        assert graph.text(gm) == dedent(text).strip()

    return compare


@pytest.fixture
def refused() -> Callable[[type[Exception], str], AbstractContextManager[None]]:
    """Return a context in which an error with exactly the given text must be raised."""

    @contextmanager
    def check(error: type[Exception], message: str) -> Iterator[None]:
        with pytest.raises(error) as caught:
            yield
        assert str(caught.value) == message

    return check


@pytest.fixture
def same() -> Callable[..., fx.GraphModule]:
    """Return a function that traces a model, and compares keys, outputs, gradients and buffers in both modes."""

    def run(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        torch.manual_seed(0)
        module.zero_grad()
        outputs = pytree.tree_leaves(module(*(x.clone() for x in inputs)))
        outputs = [output for output in outputs if isinstance(output, Tensor)]
        differentiable = [output.sum() for output in outputs if output.requires_grad]
        if differentiable:
            torch.stack(differentiable).sum().backward()
        return [*outputs, *(part.grad for part in module.parameters() if part.grad is not None)]

    def compare(model: nn.Module, *inputs: Tensor) -> fx.GraphModule:
        gm = graph.capture(model, inputs, way="symbolic")
        assert list(gm.state_dict()) == list(model.state_dict())
        for training in (False, True):
            found, expected = (run(module.train(training), inputs) for module in (gm, model))
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
        torch.testing.assert_close(gm.state_dict(), model.state_dict())
        return gm

    return compare
