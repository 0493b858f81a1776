"""References to functions by name: a bare name is ours, `package.module:attribute` is the user's own."""

import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from fxcompress.errors import PolicyError
from fxcompress.policies.base import Strict, nearest

_DOTTED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_dotted(name: str) -> bool:
    """Return whether `name` is of the form `package.module:attribute`."""
    return _DOTTED.fullmatch(name) is not None


def load_attribute(name: str, at: str = "") -> Any:
    """Import `package.module:attribute` and return it; raises PolicyError saying which half is missing."""
    module_name, _, attribute = name.partition(":")
    where = f"{at}: " if at else ""
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise PolicyError(f"{where}cannot import module {module_name!r} of {name!r}: {error}") from error
    if not hasattr(module, attribute):
        raise PolicyError(f"{where}module {module_name!r} has no {attribute!r}{nearest(attribute, dir(module))}")
    return getattr(module, attribute)


class Reference(Strict):
    """A function by name with its arguments: `minmax`, `{percentile: {q: 99.9}}` or `{my_package.observers:mine: {...}}`.

    A subclass lists in `known` the bare names that it accepts, each with the model of its arguments.
    """

    name: str
    args: dict[str, Any] = {}

    @classmethod
    def known(cls) -> Mapping[str, type[Strict]]:
        """Return the bare names, each with the model of its arguments."""
        return {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any, info: ValidationInfo) -> Any:  # replaces the check of Strict
        if isinstance(data, cls):
            return data
        if isinstance(data, str):
            name, args = data, {}
        elif isinstance(data, dict) and len(data) == 1 and isinstance(next(iter(data.values())), dict | None):
            name, args = next(iter(data)), next(iter(data.values())) or {}
        elif isinstance(data, dict) and isinstance(data.get("name"), str) and set(data) <= {"name", "args"}:
            name, args = data["name"], data.get("args", {})
        else:
            raise PydanticCustomError(
                "reference", "write a name, or one name with its arguments: 'name: {argument: value}'"
            )
        if is_dotted(name):
            check_allowed(name, info)
            return {"name": name, "args": dict(args)}
        if name not in cls.known():
            raise PydanticCustomError(
                "unknown_name",
                "unknown name '{name}'{hint}; accepted: {accepted}, or your own as package.module:attribute",
                {"name": name, "hint": nearest(name, cls.known()), "accepted": ", ".join(cls.known())},
            )
        return {"name": name, "args": _checked(cls.known()[name], name, args)}

    def plain(self) -> Any:
        return {self.name: self.args} if self.args else self.name

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> dict[str, Any]:
        named = {
            name: arguments.model_json_schema() if arguments.model_fields else {"type": "object", "maxProperties": 0}
            for name, arguments in cls.known().items()
        }
        own = {_DOTTED.pattern.join("^$"): {"type": "object"}}
        return {
            "description": (cls.__doc__ or "").splitlines()[0],
            "anyOf": [
                {"enum": list(named)},
                {"type": "string", "pattern": _DOTTED.pattern.join("^$")},
                {
                    "type": "object",
                    "properties": named,
                    "patternProperties": own,
                    "additionalProperties": False,
                    "minProperties": 1,
                    "maxProperties": 1,
                },
            ],
        }

    def function(self, ours: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
        """Return the function: one of `ours` for a bare name, otherwise the imported attribute."""
        return ours[self.name] if self.name in ours else load_attribute(self.name, self.at)


def check_allowed(name: str, info: ValidationInfo) -> None:
    """Refuse a dotted name, which runs code, where the reader asked for built-in names only."""
    if info.context and info.context.get("builtin_only"):
        raise PydanticCustomError("builtin_only", "'{name}' runs code; --builtin-only refuses it", {"name": name})


def _checked(model: type[Strict], name: str, args: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return model.model_validate(dict(args)).stated()
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in (name, *first["loc"]))
        raise PydanticCustomError(
            "arguments", "{place}: {reason}", {"place": place, "reason": first["msg"]}
        ) from None
