"""Latency tables: measured times of operators, read from a JSON file."""

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from fxcompress.errors import NotReadyError, PolicyError
from fxcompress.policies import Strict


class Row(Strict):
    """One measured operator: its signature, its precision, and its time in nanoseconds.

    `arguments` are those after input, weight and bias (stride, padding, dilation, groups, ...). Bits are 32 for float.
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


def signature(row: Row) -> Signature:
    """Return what must agree for a row to speak of an operator."""
    return (
        *(row.kind, row.input, row.weight, flat(row.arguments)),
        *(row.weight_bits, row.input_bits, row.sparsity),
    )


def flat(arguments: Any) -> tuple[Any, ...]:
    """Return operator arguments with lists as tuples, so that they compare and hash."""
    return tuple(flat(item) if isinstance(item, list | tuple) else item for item in arguments)


@lru_cache(maxsize=8)
def read_table(path: str) -> dict[Signature, int]:
    """Return the times in nanoseconds by signature. Raises PolicyError when the file is missing or not a table."""
    try:
        table = LatencyTable.model_validate_json(Path(path).read_text("utf-8"))
    except OSError as error:
        raise PolicyError(f"latency table {path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise PolicyError(f"latency table {path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return {signature(row): row.median for row in table.rows}


def look_up(path: str, wanted: Row, layer: str) -> int:
    """Return the time of an operator in nanoseconds. Raises NotReadyError naming the entry that is missing."""
    times = read_table(path)
    if signature(wanted) not in times:
        raise NotReadyError(
            f"latency table {path} has no entry that {layer!r} needs: kind {wanted.kind}, input {list(wanted.input)}, "
            f"weight {list(wanted.weight)}, arguments {list(wanted.arguments)}, weight_bits {wanted.weight_bits}, "
            f"input_bits {wanted.input_bits}, sparsity {wanted.sparsity}; measure it, or take the option off the list"
        )
    return times[signature(wanted)]
