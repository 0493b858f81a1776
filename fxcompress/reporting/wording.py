"""How shares, shapes and places read in a report."""

import os
from collections.abc import Sequence

from fxcompress.graph.coverage import Coverage, Unseen


def place_of(unseen: Unseen) -> str:
    """Return the place that could not be followed, with the text of its line."""
    return from_here(": ".join(filter(None, (unseen.place, unseen.line.rstrip(":")))))


def from_here(text: str) -> str:
    """Return a text with the paths of files below the working folder as seen from there."""
    return text.replace(os.path.join(os.getcwd(), ""), "")


def percent(part: int | None, whole: int | None) -> str:
    """Return a share as text, `-` where there is none; what is not all or nothing does not read so."""
    if part is None or not whole:
        return "-"
    if 0 < part / whole < 0.001 or 0.999 < part / whole < 1:
        return "<0.1%" if part < whole / 2 else ">99.9%"
    return f"{part / whole:.1%}"


def shape_text(shape: Sequence[int] | None) -> str:
    """Return a shape as text, `-` where it is not known."""
    return "-" if shape is None else "x".join(map(str, shape)) or "scalar"


def of_macs(part: int | None, seen: Coverage) -> str:
    """Return the beginning of a sentence on shares, "" where there are no multiply-accumulates."""
    return f"{percent(part, seen.macs)} of the multiply-accumulates, " if seen.macs else ""
