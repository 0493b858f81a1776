"""Amounts of a budget: `25%`, `1.2 MB`, `3 ms`, `40 MBOPs` or a plain number in the smallest unit."""

import re
from fractions import Fraction
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import core_schema

from fxcompress.policies.base import nearest, problem

UNITS: dict[str, dict[str, int]] = {
    "size": {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
    "bops": {"BOPs": 1, "kBOPs": 10**3, "MBOPs": 10**6, "GBOPs": 10**9, "TBOPs": 10**12},
    "latency": {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9},
}
_ALL_UNITS = sorted({unit for units in UNITS.values() for unit in units})
_FORM = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(%|[A-Za-z]*)\s*")


class Amount:
    """A positive amount, relative (`25%` of the float model) or absolute (`1.2 MB`); equal when written the same."""

    def __init__(self, text: str | int | float) -> None:
        match = None if isinstance(text, bool) else _FORM.fullmatch(str(text))
        if match is None or Fraction(match[1]) <= 0:
            raise ValueError(f"{text!r} is not an amount; write for example '25%', '1.2 MB', '3 ms' or '40 MBOPs'")
        if match[2] not in ("", "%", *_ALL_UNITS):
            hint, accepted = nearest(match[2], _ALL_UNITS), ", ".join(_ALL_UNITS)
            raise ValueError(f"{text!r} has an unknown unit {match[2]!r}{hint}; accepted: %, {accepted}")
        self.text = text
        self.value, self.unit = Fraction(match[1]), match[2]  # exact: 2.3 MB are 2300000 bytes

    def limit(self, budget: str, whole: int) -> int:
        """Return the limit in the budget's smallest unit; `whole` is the price of the float model.

        Raises ValueError for a unit of another budget.
        """
        if self.unit == "%":
            return int(whole * self.value / 100)
        units = UNITS.get(budget, {})
        if self.unit and self.unit not in units:
            raise ValueError(
                f"{self.text!r} is no amount of {budget}; accepted units: %, {', '.join(units) or 'none'}"
            )
        return int(self.value * (units[self.unit] if self.unit else 1))

    def plain(self) -> str | int | float:
        """Return the amount as it was written."""
        return self.text

    def __repr__(self) -> str:
        return str(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Amount) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    @classmethod
    def _validate(cls, value: Any) -> "Amount":
        if isinstance(value, Amount):
            return value
        try:
            return cls(value)
        except ValueError as error:
            raise problem(str(error)) from None

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._validate, serialization=core_schema.plain_serializer_function_ser_schema(cls.plain)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return amount_schema(_ALL_UNITS)


def amount_schema(units: list[str]) -> dict[str, Any]:
    """Return the JSON Schema of an amount in one of the units, in the smallest of them, or relative."""
    pattern = rf"^\s*([0-9]*\.?[0-9]+([eE][+-]?[0-9]+)?)\s*({'|'.join(['%', *units])})?\s*$"
    return {
        "description": "An amount: 25% of the float model, or absolute; a plain number is in the smallest unit",
        "anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "pattern": pattern}],
    }


def show(budget: str, amount: float) -> str:
    """Return an amount of the smallest unit in the unit that reads best, for example `68.2 kB`."""
    names = {"size": ("B", "kB", "MB", "GB"), "bops": ("BOPs", "kBOPs", "MBOPs", "GBOPs", "TBOPs")}
    names["latency"] = ("ns", "us", "ms", "s")
    units = [(unit, UNITS[budget][unit]) for unit in names.get(budget, ())]
    fitting = [(unit, factor) for unit, factor in units if abs(amount) >= factor]
    if not fitting:
        return f"{amount:g} {units[0][0]}" if units else f"{amount:,.4g}"
    unit, factor = fitting[-1]
    return f"{amount / factor:.4g} {unit}" if factor > 1 else f"{amount:g} {unit}"
