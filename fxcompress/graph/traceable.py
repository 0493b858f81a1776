"""Settings of torch while it exports: nothing fused, nothing with a gradient of its own, no word to the terminal."""

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointFunction

from fxcompress.errors import CaptureError
from fxcompress.graph.follow import outside_torch, text_of


@contextlib.contextmanager
def traceable() -> Iterator[None]:
    """Let torch.export see all operators of a model, and keep to itself what it has to say of them.

    Attention does without its fused operator, and checkpointing without its autograd function.
    Raises CaptureError where the model calls an autograd function of its own: a program has no gradients.
    """
    level, fast_path = logging.root.manager.disable, torch.backends.mha.get_fastpath_enabled()
    logging.disable(logging.CRITICAL)
    torch.backends.mha.set_fastpath_enabled(False)
    apply = torch.autograd.Function.__dict__["apply"]
    setattr(torch.autograd.Function, "apply", classmethod(_apply_with(apply.__func__)))  # noqa: B010
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        setattr(torch.autograd.Function, "apply", apply)  # noqa: B010
        torch.backends.mha.set_fastpath_enabled(fast_path)
        logging.disable(level)


def _apply_with(original: Any) -> Any:
    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if cls is CheckpointFunction:
            function, _, *inputs = args
            return function(*inputs)
        if cls.__module__.startswith("torch."):
            return original(cls, *args, **kwargs)
        frame = outside_torch(sys._getframe(1))
        place, line = f"{frame.f_code.co_filename}:{frame.f_lineno}", text_of(frame)
        raise CaptureError(
            f"forward calls the autograd function {cls.__name__} at {place} ({line}); a graph would lose its gradient",
            place=place,
            line=line,
        )

    return apply
