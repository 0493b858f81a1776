"""Progress on long work, shown on a terminal and silent elsewhere."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield the items while a bar on the terminal's error stream tells how far it is; the bar goes when it ends."""
    console = Console(stderr=True)
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    yield from track(
        items, description, total=total, console=console, transient=True, disable=not console.is_terminal
    )
