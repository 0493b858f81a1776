"""What a step of tuning cannot do: it warns of the layers that it leaves, and leaving all of them is an error."""

import warnings
from collections.abc import Sequence

from fxcompress.errors import PassError
from fxcompress.tune.weights import Tunable, uniform


def say_left(step: str, left: Sequence[str], count: int, *, what: str, done: str, why: str) -> None:
    """Warn of the layers `left` of `count` that cannot be `done`; raises PassError where these are all."""
    if len(left) == count:
        raise PassError(f"{step}: none of {count} {what} can be {done}: {why}")
    if left:
        said = f"{step}: {len(left)} of {count} {what} cannot be {done} (the first is {left[0]!r})"
        warnings.warn(f"{said}: {why}", stacklevel=4)


def say_uneven(step: str, found: Sequence[Tunable]) -> None:
    """Warn of weights without even steps, of which no rounding can be learned; raises PassError where all are."""
    even = [one for one, _ in uniform(found)]
    left = [one.layer.name for one in found if one not in even]
    why = "it chooses between the codes of even steps (whole bits, no codebook)"
    say_left(step, left, len(found), what="quantized weights", done="rounded", why=why)
