"""Train and eval mode: running in eval mode for a while, and observing which code asks for the mode."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch.nn.functional as F
from torch import nn

from fxcompress.graph.source import line_of

# The functions that drop out, as modules.
DROPOUT: Mapping[Any, Callable[[Any], nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
}


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode, and each of its modules back into its own mode afterwards."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


class Mode(int):
    """What `self.training` is while a model is traced, noting in `asked` each line that branches on it.

    It is false, or `branch` where code branches on it.
    """

    asked: dict[str, str]
    branch: bool

    def __new__(cls, asked: dict[str, str], branch: bool = False) -> "Mode":
        mode = super().__new__(cls, 0)
        mode.asked, mode.branch = asked, branch
        return mode

    def __bool__(self) -> bool:
        place, line = line_of(sys._getframe(1))
        self.asked[place] = line
        return self.branch

    def __deepcopy__(self, memo: dict[int, Any]) -> "Mode":
        return self


class FollowsMode(nn.Module):
    """Call a function with the mode, in the place of the arguments at some positions or of some keywords."""

    def __init__(self, function: Any, positions: Sequence[int], keywords: Sequence[str]) -> None:
        super().__init__()
        self.function, self.positions, self.keywords = function, tuple(positions), tuple(keywords)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        args = tuple(self.training if index in self.positions else value for index, value in enumerate(args))
        return self.function(*args, **kwargs | dict.fromkeys(self.keywords, self.training))

    def extra_repr(self) -> str:
        return getattr(self.function, "__name__", str(self.function))


def takes_only_bool(error: BaseException | None) -> TypeGuard[TypeError]:
    """Return whether an error comes from a function in C that takes the mode and accepts nothing but a bool."""
    return isinstance(error, TypeError) and f"must be bool, not {Mode.__name__}" in str(error)


@contextmanager
def observed_mode(model: nn.Module, branch: bool = False) -> Iterator[dict[str, str]]:
    """Put a Mode in the place of `training` in each module; yields the lines that branch on it, by `file:line`.

    They go the way of train mode if `branch`.
    """
    asked: dict[str, str] = {}
    with eval_mode(model):
        for module in model.modules():
            module.training = Mode(asked, branch)  # type: ignore[assignment]
        yield asked
