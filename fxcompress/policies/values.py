"""The values that a solver can choose, bits to kernel sizes; a list where one value stands is open."""

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


def is_whole(value: Any) -> bool:
    """Return whether a value is a whole number, which true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _one_of(words: tuple[str, ...]) -> Callable[[Any], Any]:
    """Return the check of bits: 2 to 8, 16, or one of some words."""
    accepted = f"write a whole number from 2 to 8, 16, {', '.join(map(repr, words[:-1]))} or {words[-1]!r}"

    def check(value: Any) -> Any:
        if (isinstance(value, str) and value in words) or (is_whole(value) and (2 <= value <= 8 or value == 16)):
            return value
        raise ValueError(f"{value!r} bits are not accepted; {accepted}")

    return check


def _bits_schema(words: tuple[str, ...]) -> dict[str, Any]:
    return or_open_schema({"anyOf": [{"type": "integer", "minimum": 2, "maximum": 8}, {"enum": [16, *words]}]})


def _group_size(value: Any) -> int:
    if is_whole(value) and value >= 2:
        return int(value)
    raise ValueError(
        f"a group size of {value!r} is not accepted; write a whole number of weights from 2, such as 128"
    )


def _sparsity(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1:
        return float(value)
    raise ValueError(f"a sparsity of {value!r} is not accepted; write the share of zeros, from 0.0 to below 1.0")


def _kernel_size(value: Any) -> int:
    if is_whole(value) and value > 0 and value % 2 == 1:
        return int(value)
    raise ValueError(f"a kernel size of {value!r} is not accepted; write a positive odd number such as 1, 3 or 5")


FLOAT8 = ("e4m3", "e5m2")
SIGNS = ("binary", "ternary")
_KERNEL_SCHEMA = {"type": "integer", "minimum": 1, "not": {"multipleOf": 2}}
_GROUP_SCHEMA = {"type": "integer", "minimum": 2}
_SPARSITY_SCHEMA = {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
_INPUT_WORDS = (*FLOAT8, "float")
_WEIGHT_WORDS = (*SIGNS, *_INPUT_WORDS)

WeightBits: TypeAlias = Annotated[
    Any, BeforeValidator(or_open(_one_of(_WEIGHT_WORDS))), WithJsonSchema(_bits_schema(_WEIGHT_WORDS))
]
InputBits: TypeAlias = Annotated[
    Any, BeforeValidator(or_open(_one_of(_INPUT_WORDS))), WithJsonSchema(_bits_schema(_INPUT_WORDS))
]
GroupSize: TypeAlias = Annotated[
    Any, BeforeValidator(or_open(_group_size)), WithJsonSchema(or_open_schema(_GROUP_SCHEMA))
]
Sparsity: TypeAlias = Annotated[
    Any, BeforeValidator(or_open(_sparsity)), WithJsonSchema(or_open_schema(_SPARSITY_SCHEMA))
]
KernelSize: TypeAlias = Annotated[
    Any, BeforeValidator(or_open(_kernel_size)), WithJsonSchema(or_open_schema(_KERNEL_SCHEMA))
]
