"""Gradients of a model's own making, which a graph would lose: refused while the model is traced."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointFunction

from fxcompress.errors import CaptureError
from fxcompress.graph.source import line_of, outside_torch


@contextlib.contextmanager
def own_gradients_refused() -> Iterator[None]:
    """Raise CaptureError where code calls an autograd function of its own, or hooks into the gradient of a tensor.

    Checkpointing does without its autograd function.
    """
    apply, register_hook = torch.autograd.Function.__dict__["apply"], torch.Tensor.register_hook
    setattr(torch.autograd.Function, "apply", classmethod(_apply_with(apply.__func__)))  # noqa: B010
    torch.Tensor.register_hook = _refuse_hook  # type: ignore[method-assign]
    try:
        yield
    finally:
        setattr(torch.autograd.Function, "apply", apply)  # noqa: B010
        torch.Tensor.register_hook = register_hook  # type: ignore[method-assign]


def _apply_with(original: Any) -> Any:
    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if cls is CheckpointFunction:
            function, _, *inputs = args
            return function(*inputs)
        if cls.__module__.startswith("torch."):
            return original(cls, *args, **kwargs)
        raise _lost(f"calls the autograd function {cls.__name__}")

    return apply


def _refuse_hook(tensor: Any, hook: Any) -> Any:
    raise _lost("registers a hook on a tensor")


def _lost(does: str) -> CaptureError:
    place, line = line_of(outside_torch(sys._getframe(2)))
    return CaptureError(
        f"forward {does} at {place} ({line}); a graph would lose its gradient", place=place, line=line
    )
