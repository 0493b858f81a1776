"""The values that a solver can choose: bits, sparsity, kernel size; a list where one value stands is open."""

from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, WithJsonSchema

from fxcompress.policies.base import problem


def or_open(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the validator of one value, or of a list of two or more for the solver to choose from.

    `check` returns the value or raises ValueError with what would be accepted.
    """

    def validate(value: Any) -> Any:
        try:
            if not isinstance(value, list | tuple):
                return check(value)
            options = tuple(check(option) for option in value)
        except ValueError as error:
            raise problem(str(error)) from None
        if len(options) < 2 or len(set(options)) < len(options):
            raise problem("a list offers two or more different options; write one value plainly")
        return options

    return validate


def or_open_schema(one: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON Schema of one value, or of a list of two or more different ones."""
    return {"anyOf": [one, {"type": "array", "items": one, "minItems": 2, "uniqueItems": True}]}


def _bits(value: Any) -> Any:
    if value == "float" or (isinstance(value, int) and not isinstance(value, bool) and 2 <= value <= 8):
        return value
    raise ValueError(f"{value!r} bits are not accepted; write a whole number from 2 to 8, or 'float'")


def _sparsity(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1:
        return float(value)
    raise ValueError(f"a sparsity of {value!r} is not accepted; write the share of zeros, from 0.0 to below 1.0")


def _kernel_size(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0 and value % 2 == 1:
        return value
    raise ValueError(f"a kernel size of {value!r} is not accepted; write a positive odd number such as 1, 3 or 5")


_BITS_SCHEMA = {"anyOf": [{"type": "integer", "minimum": 2, "maximum": 8}, {"const": "float"}]}
_KERNEL_SCHEMA = {"type": "integer", "minimum": 1, "not": {"multipleOf": 2}}
_SPARSITY_SCHEMA = {"type": "number", "minimum": 0, "exclusiveMaximum": 1}

Bits: TypeAlias = Annotated[Any, BeforeValidator(or_open(_bits)), WithJsonSchema(or_open_schema(_BITS_SCHEMA))]
Sparsity: TypeAlias = Annotated[
    Any, BeforeValidator(or_open(_sparsity)), WithJsonSchema(or_open_schema(_SPARSITY_SCHEMA))
]
KernelSize: TypeAlias = Annotated[
    Any, BeforeValidator(or_open(_kernel_size)), WithJsonSchema(or_open_schema(_KERNEL_SCHEMA))
]
