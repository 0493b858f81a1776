"""Nested tensors, which no graph can follow: what tells that a model is given, makes or returns one."""

import sys
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxcompress.errors import CaptureError
from fxcompress.graph.inputs import Arguments
from fxcompress.graph.source import line_of, outside_torch


def refuse_nested(arguments: Arguments) -> None:
    """Raise CaptureError for a nested tensor, whose sizes no graph can follow."""
    for path, leaf in pytree.tree_flatten_with_path(tuple(arguments))[0]:
        if isinstance(leaf, Tensor) and leaf.is_nested:
            raise CaptureError(
                f"example input {pytree.keystr(path[1:])} is a nested tensor, which cannot be followed; give a "
                "padded one: x.to_padded_tensor(0.0)"
            )


class WatchNesting(TorchFunctionMode):
    """Notes the first line of code outside torch that has to do with a nested tensor."""

    place, line = "", ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.place and any(map(is_nested, pytree.tree_leaves((args, kwargs, result)))):
            self.place, self.line = line_of(outside_torch(sys._getframe(1)))
        return result


def is_nested(value: Any) -> bool:
    """Return whether a value is a nested tensor."""
    return isinstance(value, Tensor) and value.is_nested


def nesting(said: str, **where: str) -> CaptureError:
    """Return the error for a model of which `said` is true."""
    return CaptureError(
        f"{said}, which no graph can follow; pad the sequences instead and mask what is padded, or keep that part "
        "outside the model",
        **where,
    )
