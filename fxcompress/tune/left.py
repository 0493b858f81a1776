"""What a step of tuning cannot do: it warns of the layers that it leaves, and leaving all of them is an error."""

import warnings
from collections.abc import Mapping, Sequence

from fxcompress.errors import PassError
from fxcompress.tune.weights import QuantizedWeight


def say_left(step: str, left: Mapping[str, str], count: int, *, what: str, done: str, still: str = "") -> None:
    """Warn of those of `count` that cannot be `done`: why, by the name of the layer.

    Raises PassError where there are none, or where these are all and nothing is `still` done.
    """
    if not count:
        raise PassError(f"{step}: there are no {what}")
    if not left:
        return
    name, why = next(iter(left.items()))
    said = f"{done} (the first is {name!r}): {why}"
    if len(left) < count:
        warnings.warn(f"{step}: {len(left)} of {count} {what} cannot be {said}", stacklevel=4)
    elif still:
        warnings.warn(f"{step}: none of {count} {what} can be {said}; {still}", stacklevel=4)
    else:
        raise PassError(f"{step}: none of {count} {what} can be {said}")


def say_unrounded(step: str, found: Sequence[QuantizedWeight], *, still: str = "") -> None:
    """Warn of weights whose rounding cannot be chosen; raises PassError as `say_left` does."""
    left = {one.layer.name: one.obstacle for one in found if one.obstacle}
    say_left(
        step, left, len({one.layer.name for one in found}), what="quantized weights", done="rounded", still=still
    )
