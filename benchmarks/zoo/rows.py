"""What is known of one model of the zoo, as a row of a CSV file."""

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

EQUAL = "equal"  # what a result says when the outputs are; any other text is the reason why not


@dataclass
class Row:
    """A model, what it is, what `fxcompress.capture` made of it, and what plain tracers did.

    `parameters` and `macs` are totals, seconds are of one run with one thread. `capture`, `larger`, `fx` and `export`
    are results: "equal", a reason, or "" where it was not reached. Differences are in units of an output's largest
    value; 0 is bit-equal.
    """

    library: str
    family: str
    name: str
    versions: str
    parameters: int | None = None
    macs: int | None = None  # the larger of our count and of torch.utils.flop_counter's
    forward_seconds: float | None = None
    capture: str = ""  # on the inputs of the capture and on others of the same shapes; so are fx and export
    way: str = ""
    tried: str = ""  # the ways that were not taken, and why
    capture_seconds: float | None = None
    macs_share: float | None = None
    parameters_share: float | None = None
    difference: float | None = None
    larger: str = ""  # on inputs of another batch size
    larger_difference: float | None = None
    layers: int | None = None
    unseen: int | None = None
    first_unseen: str = ""
    fx: str = ""
    fx_seconds: float | None = None
    export: str = ""
    export_seconds: float | None = None

    @property
    def key(self) -> tuple[str, str]:
        """The model's name in the zoo."""
        return self.library, self.name

    @property
    def captured(self) -> bool:
        """Whether the graph does what the model does, for calls of the captured shapes."""
        return self.capture == EQUAL


def append(path: Path, row: Row) -> None:
    """Write a row at the end of the file, below a header where the file is new."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow({name: _shorten(value) for name, value in asdict(row).items()})


def _shorten(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(value.split()) if isinstance(value, str) else value


def read(path: Path) -> list[Row]:
    """Return the rows of a file, none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [Row(**{key: _parse(key, text) for key, text in line.items()}) for line in csv.DictReader(file)]


def _parse(key: str, text: str) -> Any:
    kind = Row.__annotations__[key]
    if kind is str:
        return text
    return None if text == "" else (int if kind == int | None else float)(text)


def write(path: Path, rows: Iterable[Row]) -> None:
    """Replace the file by these rows."""
    path.unlink(missing_ok=True)
    for row in rows:
        append(path, row)
