"""The base of every policy model: frozen, refuses unknown keys, and knows the line of the file it came from."""

import difflib
from collections.abc import Iterable
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

Location = tuple[str | int, ...]  # keys and positions that lead from a value to a part of it


def nearest(word: str, accepted: Iterable[str]) -> str:
    """Return the hint ` (did you mean 'x'?)` for the closest accepted spelling, or an empty text."""
    close = difflib.get_close_matches(word, list(accepted), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def problem(text: str) -> PydanticCustomError:
    """Return the error that a validator raises to say what is wrong with its value."""
    return PydanticCustomError("policy", "{text}", {"text": text})


def problem_at(location: Location, text: str) -> ValidationError:
    """Return the error that a validator raises to say what is wrong with a part of its value."""
    return ValidationError.from_exception_data(
        "policy", [InitErrorDetails(type=problem(text), loc=location, input=None)]
    )


def within(error: ValidationError, *outer: str | int) -> ValidationError:
    """Return the error of a part of a value as an error of the value."""
    return ValidationError.from_exception_data(
        error.title,
        [
            InitErrorDetails(
                type=PydanticCustomError(one["type"], "{said}", one.get("ctx", {}) | {"said": one["msg"]}),
                loc=(*outer, *one["loc"]),
                input=one["input"],
            )
            for one in error.errors()
        ],
    )


class Strict(BaseModel):
    """A frozen value that refuses unknown keys, naming the nearest accepted one."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    _at: str = PrivateAttr(default="")

    @property
    def at(self) -> str:
        """Where the value stands, as `file:line`; empty when it was not read from a file."""
        return self._at

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        for key in data if isinstance(data, dict) else ():
            if key not in cls.model_fields:
                hint = nearest(str(key), cls.model_fields)
                accepted = ", ".join(cls.model_fields) or "none"
                raise problem_at((str(key),), f"unknown key {str(key)!r}{hint}; accepted: {accepted}")
        return data

    def stated(self) -> dict[str, Any]:
        """Return the fields that were written down, by name; defaults are left out."""
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}

    def plain(self) -> Any:
        """Return what was written down as mappings, lists, texts and numbers, ready for YAML or JSON."""
        return {name: plain(value) for name, value in self.stated().items()}

    def replaced(self, **changes: Any) -> Self:
        """Return a checked copy with some fields changed, keeping its place in the file."""
        copy = type(self).model_validate(self.stated() | changes)
        copy._at = self._at
        return copy

    def __eq__(self, other: object) -> bool:  # a value is equal wherever it was read from
        return type(self) is type(other) and self.__dict__ == other.__dict__


def plain(value: Any) -> Any:
    """Return a value of a policy as mappings, lists, texts and numbers."""
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value.plain() if hasattr(value, "plain") else value
