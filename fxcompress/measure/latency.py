"""Latency tables: measured times of operators, read from a JSON file."""

from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from fxcompress.errors import NotReadyError, PolicyError
from fxcompress.policies import Strict


class Row(Strict):
    """One measured operator: its signature, its precision, and its time in nanoseconds.

    `arguments` are those after input, weight and bias (stride, padding, dilation, groups, ...). Bits are 32 for
    float.
    """

    kind: str
    input: tuple[int, ...]
    weight: tuple[int, ...]
    arguments: tuple[Any, ...] = ()
    weight_bits: int = 32
    input_bits: int = 32
    sparsity: float = 0.0
    median: Annotated[int, Field(ge=0)]
    spread: int | None = None
    runs: int | None = None


class LatencyTable(Strict):
    """A latency table, version 1: where it was measured and its rows."""

    version: Literal[1]
    device: str
    engine: str
    rows: tuple[Row, ...]


Signature = tuple[Any, ...]


class Table(NamedTuple):
    """The times of a latency table in nanoseconds by signature, and the file that they come from."""

    path: str
    times: dict[Signature, int]


def signature(row: Row) -> Signature:
    """Return what must agree for a row to speak of an operator; sparsity as the number of zeros that it gives."""
    zeros = round(row.sparsity * prod(row.weight))
    return row.kind, row.input, row.weight, flat(row.arguments), row.weight_bits, row.input_bits, zeros


def flat(arguments: Any) -> tuple[Any, ...]:
    """Return operator arguments with lists as tuples, so that they compare and hash."""
    return tuple(flat(item) if isinstance(item, list | tuple) else item for item in arguments)


def read_table(path: str) -> Table:
    """Return what a file of measured times holds. Raises PolicyError when it is missing or not a table."""
    try:
        table = LatencyTable.model_validate_json(Path(path).read_text("utf-8"))
    except OSError as error:
        raise PolicyError(f"latency table {path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise PolicyError(f"latency table {path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return Table(path, {signature(row): row.median for row in table.rows})


def look_up(table: Table | str, wanted: Row, layer: str) -> int:
    """Return the time of an operator in nanoseconds. Raises NotReadyError naming the entry that is missing."""
    path, times = read_table(table) if isinstance(table, str) else table
    if signature(wanted) not in times:
        raise NotReadyError(
            f"latency table {path} has no entry that {layer!r} needs: kind {wanted.kind}, "
            f"input {list(wanted.input)}, weight {list(wanted.weight)}, arguments {list(wanted.arguments)}, "
            f"weight_bits {wanted.weight_bits}, input_bits {wanted.input_bits}, sparsity {wanted.sparsity:g}; "
            "measure it, or take the option off the list"
        )
    return times[signature(wanted)]
