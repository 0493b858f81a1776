"""The zoo: capture and check many models, and write what was found.

    python -m benchmarks.zoo.run [--library NAME] [--only NAME] [--sample] [--fresh]

Needs torchvision, timm and diffusers beside what the project needs: `make zoo` installs them apart and runs this.
"""

import argparse
import importlib
import importlib.metadata
import logging
import os
import warnings
from collections.abc import Container, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.zoo import rows, torchvision_operators
from benchmarks.zoo.entries import Entry
from benchmarks.zoo.judge import judge
from benchmarks.zoo.processes import Finished, Limits, each
from benchmarks.zoo.rows import Row
from benchmarks.zoo.sample import FLOORS, below_floor
from benchmarks.zoo.write import page

LIBRARIES = ("torch", "torchvision", "timm", "transformers", "diffusers")


def main() -> int:
    """Run the zoo; return the exit status."""
    options = _options()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tiny configurations need no file
    torch.set_num_threads(1)  # before any fork
    torchvision_operators.declare()
    wanted = [entry for entry in _entries(options.library) if _is_wanted(entry, options)]
    if not wanted:
        print("no such model: give --only a name as docs/zoo.csv has it, or a part of one")
        return 2
    if options.sample:
        return _report(list(_measure(wanted, options)))
    if options.only:
        failed = [row for row in _measure(wanted, options) if not row.captured]
        return 1 if failed else 0
    _complete(options.out / "zoo.csv", wanted, options)
    return 0


def _complete(file: Path, wanted: list[Entry], options: argparse.Namespace) -> None:
    """Measure what the table lacks or has of other versions, and write it and its page."""
    order = {_key(entry): index for index, entry in enumerate(wanted)}
    found = [row for row in rows.read(file) if _stays(row, order, options)]
    rows.write(file, found)
    done = {row.key for row in found}
    for row in _measure([entry for entry in wanted if _key(entry) not in done], options):
        found.append(row)
        rows.append(file, row)
    found.sort(key=lambda row: (LIBRARIES.index(row.library), order.get(row.key, 0)))
    rows.write(file, found)
    (options.out / "zoo.md").write_text(page(found))


def _key(entry: Entry) -> tuple[str, str]:
    return entry.library, entry.name


def _stays(row: Row, wanted: Container[tuple[str, str]], options: argparse.Namespace) -> bool:
    """Return whether a row of the table is of a library that is not asked for, or up to date."""
    if options.library not in (None, row.library):
        return True
    return not options.fresh and row.key in wanted and row.versions == versions(row.library)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.zoo.run", description="Capture and check many models."
    )
    parser.add_argument("--library", choices=LIBRARIES, help="this library only")
    parser.add_argument("--only", help="models whose name contains this; writes no table")
    parser.add_argument("--sample", action="store_true", help="20 fast models against their floors; writes no table")
    parser.add_argument("--fresh", action="store_true", help="measure models again that are in the table")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for each model")
    parser.add_argument("--memory", type=float, default=10.0, help="gigabytes for each model")
    parser.add_argument("--jobs", type=int, default=2, help="models at a time")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of zoo.csv and zoo.md")
    return parser.parse_args()


def _entries(library: str | None) -> Iterator[Entry]:
    for name in (library,) if library else LIBRARIES:
        yield from importlib.import_module(f"benchmarks.zoo.{name}_models").entries()


def _is_wanted(entry: Entry, options: argparse.Namespace) -> bool:
    if options.sample:
        return _key(entry) in FLOORS
    return options.only is None or options.only in entry.name


def _measure(entries: list[Entry], options: argparse.Namespace) -> Iterator[Row]:
    """Yield the row of each model as it is known, and say so."""
    # Once here and not in each process: the first export imports much.
    torch.export.export(nn.Linear(1, 1), (torch.ones(1, 1),), strict=False)
    work = partial(judge, plain=not options.sample)
    for finished in each(entries, work, Limits(options.limit, options.memory), options.jobs):
        row = _row(finished)
        print(_line(row, finished.seconds), flush=True)
        yield row


def _row(finished: Finished[Entry]) -> Row:
    """Return the row of a model; a result that its process did not live to see says why."""
    entry, sent = finished.task, dict(finished.sent)
    if finished.ended:
        last = next((name for name in ("export", "fx") if name in sent), "capture")
        sent[last] = f"{finished.ended} while {sent.get(last, 'starting')}"
    return Row(entry.library, entry.family, entry.name, versions(entry.library), **sent)


def versions(library: str) -> str:
    """Return the versions that a row depends on."""
    names = dict.fromkeys(("torch", library, "fxcompress"))
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def _line(row: Row, seconds: float) -> str:
    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.0%} of macs seen"

    results: list[Any] = [row.capture, row.way, share(row.macs_share), f"other batch: {row.larger}"]
    told = ", ".join(str(one) for one in results if one)
    return f"{seconds:6.1f} s  {row.library} {row.name}: {told}"


def _report(found: list[Row]) -> int:
    failures = [problem for row in found if (problem := below_floor(row))]
    missing = FLOORS.keys() - {row.key for row in found}
    failures += [f"{library} {name}: no such model in the zoo" for library, name in sorted(missing)]
    print(*failures, f"{len(FLOORS) - len(failures)} of {len(FLOORS)} as expected", sep="\n")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
