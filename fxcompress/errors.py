"""The errors that fxcompress raises: each names the thing, its value and what to write instead."""

from collections.abc import Mapping
from types import MappingProxyType


class CompressError(Exception):
    """Base of every error that fxcompress raises on purpose."""


class PolicyError(CompressError):
    """The policy file or object is wrong, or one of its rules matches nothing in the model."""


class CaptureError(CompressError):
    """The model could not be turned into a graph, or the graph does not compute what the model does.

    `place` is the `file:line` of the model's code that cannot be followed and `line` its text; "" where not known.
    """

    def __init__(self, message: str, *, place: str = "", line: str = "") -> None:
        super().__init__(message)
        self.place, self.line = place, line


class PassError(CompressError):
    """A pass cannot make the edit that the policy asks for."""


class InfeasibleError(CompressError):
    """No choice of options meets the budgets.

    `asked` holds the limits in conflict and `least` the least of each that would fit, in the solver's integer units
    and without what is spent anyway. If `together`, any one could be met without the others; else each fails alone.
    """

    def __init__(
        self,
        message: str,
        *,
        asked: Mapping[str, int] = MappingProxyType({}),
        least: Mapping[str, int] = MappingProxyType({}),
        together: bool = False,
    ) -> None:
        super().__init__(message)
        self.asked, self.least, self.together = dict(asked), dict(least), together


class NotReadyError(CompressError):
    """Something is missing that the step needs: data, a loss, a range, a decision or a table entry."""


class LoweringError(CompressError):
    """The model cannot be exported, or the engine does not compute what the model does."""
