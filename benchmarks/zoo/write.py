"""The page of the zoo: a summary by library, the exceptions with their reasons, and all models."""

import datetime
import os
import platform
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.zoo.rows import EQUAL, Row

WANTED_SHARE = 0.95  # of the multiply-accumulates
_HEAD = """\
# The zoo

```
make zoo            # everything, about an hour with two cores; a run that was stopped goes on where it was
make zoo-sample     # 20 models, as in CI
```

{count} models with random weights, each captured by `fxcompress.capture(model, example_inputs)` in its own process.
{date}, {machine}, Python {python}, {versions}; one thread for each model.

- **captured**: the graph returns what the model does, to {tolerance} of each output's largest value, on the inputs of
  the capture and on others of the same shapes. **any batch**: also on inputs of another batch size.
- **macs seen**, **parameters seen**: the share of the model's multiply-accumulates and parameters that are in the
  graph, as `coverage` tells. **way**: how the graph came about; **s**: how long that took.
- **fx**, **export**: plain `torch.fx.symbolic_trace` and plain `torch.export.export(strict=False)` on the same model;
  `yes` where they return a graph that does what the model does on the same inputs of the captured shapes.

[`zoo.csv`](zoo.csv) holds every figure, and the texts of all errors. Random weights are chosen so that a wrong graph
shows: no constant parameters, batch norms with the statistics of the inputs (`benchmarks/zoo/liven.py`).
"""


_SUMMARY = (
    *("library", "models", "fx", "export", "captured", "95% of macs seen", "any batch"),
    *("s, median", "s, median of export"),
)
_COLUMNS = (
    *("model", "family", "parameters, M", "macs, M", "fx", "export", "captured", "way", "s"),
    *("macs seen", "parameters seen", "any batch"),
)


def page(rows: list[Row]) -> str:
    """Return the page in Markdown."""
    return "\n".join([_head(rows), *_summary(rows), "", *_exceptions(rows), "", *_all(rows), ""])


def _head(rows: list[Row]) -> str:
    versions = dict.fromkeys(one for row in rows for one in row.versions.split(", "))
    return _HEAD.format(
        count=len(rows),
        date=datetime.date.today().isoformat(),
        machine=_machine(),
        python=platform.python_version(),
        versions=", ".join(versions),
        tolerance="1e-4",
    )


def _machine() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def _summary(rows: list[Row]) -> Iterator[str]:
    yield f"| {' | '.join(_SUMMARY)} |"
    yield f"|---|{'---:|' * (len(_SUMMARY) - 1)}"
    for library in dict.fromkeys(row.library for row in rows):
        yield _totals(library, [row for row in rows if row.library == library])
    yield _totals("**all**", rows)


def _totals(name: str, rows: list[Row]) -> str:
    def share(holds: Callable[[Row], bool]) -> str:
        count = sum(map(holds, rows))
        return f"{count / len(rows):.1%} ({count})"

    seconds = [row.capture_seconds for row in rows if row.capture_seconds is not None]
    export = [row.export_seconds for row in rows if row.export_seconds is not None and row.export == EQUAL]
    cells = [
        name,
        str(len(rows)),
        share(lambda row: row.fx == EQUAL),
        share(lambda row: row.export == EQUAL),
        share(lambda row: row.captured),
        share(is_seen),
        share(lambda row: row.larger == EQUAL),
        f"{statistics.median(seconds):.1f}" if seconds else "",
        f"{statistics.median(export):.1f}" if export else "",
    ]
    return f"| {' | '.join(cells)} |"


def is_seen(row: Row) -> bool:
    """Return whether enough of the model's work is in the graph."""
    return row.captured and row.macs_share is not None and row.macs_share >= WANTED_SHARE


def _exceptions(rows: list[Row]) -> Iterator[str]:
    exceptions = [row for row in rows if not is_seen(row) or row.larger != EQUAL]
    yield f"## Exceptions ({len(exceptions)})"
    yield ""
    if not exceptions:
        yield "None."
    for row in exceptions:
        yield f"- **{row.library} {row.name}**: {_escape(_why(row))}"


def _why(row: Row) -> str:
    if row.capture != EQUAL:
        return row.capture
    reasons = []
    if not is_seen(row):
        reasons.append(f"{_percent(row.macs_share)} of the multiply-accumulates are seen; not {row.first_unseen}")
    if row.larger != EQUAL:
        reasons.append(f"with another batch size: {row.larger or 'not run'}")
    return "; ".join(reasons)


def _all(rows: list[Row]) -> Iterator[str]:
    for library in dict.fromkeys(row.library for row in rows):
        yield f"## {library}"
        yield ""
        yield f"| {' | '.join(_COLUMNS)} |"
        yield f"|{'---|' * len(_COLUMNS)}"
        yield from (_line(row) for row in rows if row.library == library)
        yield ""


def _line(row: Row) -> str:
    cells = [
        row.name,
        row.family,
        _millions(row.parameters),
        _millions(row.macs),
        _yes(row.fx == EQUAL),
        _yes(row.export == EQUAL),
        _yes(row.captured),
        row.way,
        "" if row.capture_seconds is None else f"{row.capture_seconds:.1f}",
        _percent(row.macs_share),
        _percent(row.parameters_share),
        _yes(row.larger == EQUAL),
    ]
    return f"| {' | '.join(map(_escape, cells))} |"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _millions(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.3g}" if count < 1e9 else f"{count / 1e6:.0f}"


def _percent(share: float | None) -> str:
    """Return a share in percent, rounded down: 100% is all."""
    return "" if share is None else f"{int(share * 1000) / 10:g}%"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("__", "\\_\\_")
