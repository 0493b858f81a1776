"""Progress on long work, shown on a terminal and silent elsewhere."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from operator import length_hint
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress, track

T = TypeVar("T")


def progress(items: Iterable[T], description: str) -> Iterator[T]:
    """Yield the items while a bar on the terminal's error stream tells how far it is; the bar goes when it ends."""
    console = Console(stderr=True)
    total = length_hint(items) or None  # None is unknown: a loader over a stream has a length that raises
    yield from track(
        items, description, total=total, console=console, transient=True, disable=not console.is_terminal
    )


@contextmanager
def progress_steps(total: int, description: str) -> Iterator[Callable[[], None]]:
    """Give a function that tells a bar of `total` steps that one more is done."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=total)
        yield lambda: bar.advance(task)
