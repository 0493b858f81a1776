"""Running a graph as it is before quantization, to observe what flows through it."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from fxcompress.graph.mode import eval_mode
from fxcompress.nn import Choice, Quantizer


@contextmanager
def float_mode(model: nn.Module) -> Iterator[None]:
    """Run the model in eval mode with every quantizer on an edge letting its tensor pass; restore both afterwards.

    The options of open Choices are not on an edge yet: they stay as they are, to be tried.
    """
    offered = {part for module in model.modules() if isinstance(module, Choice) for part in module.branches.modules()}
    off = [
        module
        for module in model.modules()
        if isinstance(module, Quantizer) and module.enabled and module not in offered
    ]
    for quantizer in off:
        quantizer.enabled = False
    try:
        with eval_mode(model):
            yield
    finally:
        for quantizer in off:
            quantizer.enabled = True
