"""References to functions by name: a bare name is ours, `package.module:attribute` is the user's own."""

import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError, ValidationInfo, model_validator

from fxcompress.errors import PolicyError
from fxcompress.policies.base import Strict, nearest, problem, within

_DOTTED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
DOTTED_PATTERN = f"^{_DOTTED.pattern}$"  # for JSON Schema


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
    """A function by name with its arguments: `minmax`, `{percentile: {q: 99.9}}` or `{package.module:mine: {...}}`.

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
        name, args = _name_and_arguments(data)
        if is_dotted(name):
            check_allowed(name, info)
            return {"name": name, "args": args}
        if name not in cls.known():
            hint, accepted = nearest(name, cls.known()), ", ".join(cls.known())
            raise problem(
                f"unknown name {name!r}{hint}; accepted: {accepted}, or your own as package.module:attribute"
            )
        try:
            return {"name": name, "args": cls.known()[name].model_validate(args).stated()}
        except ValidationError as error:
            raise within(error, name) from None

    def plain(self) -> Any:
        return {self.name: self.args} if self.args else self.name

    @property
    def arguments(self) -> dict[str, Any]:
        """All arguments, also those that were left out and have a default."""
        known = self.known().get(self.name)
        return dict(self.args) if known is None else known.model_validate(self.args).model_dump()

    def function(self, ours: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
        """Return the function: one of `ours` for a bare name, otherwise the imported attribute."""
        return ours[self.name] if self.name in ours else load_attribute(self.name, self.at)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> dict[str, Any]:
        with_arguments = {
            "type": "object",
            "properties": {
                name: arguments.model_json_schema() | {"type": ["object", "null"]}
                for name, arguments in cls.known().items()
            },
            "patternProperties": {DOTTED_PATTERN: {"type": "object", "description": "Arguments of your own"}},
            "additionalProperties": False,
            "minProperties": 1,
            "maxProperties": 1,
        }
        return {
            "description": (cls.__doc__ or "").splitlines()[0],
            "anyOf": [{"enum": list(cls.known())}, {"type": "string", "pattern": DOTTED_PATTERN}, with_arguments],
        }


def _name_and_arguments(data: Any) -> tuple[str, dict[str, Any]]:
    """Take apart the three forms: a name, a name with its arguments, and the fields of a Reference."""
    if isinstance(data, str):
        return data, {}
    if isinstance(data, dict) and len(data) == 1:
        name, args = next(iter(data.items()))
        if isinstance(args, dict | None):
            return name, dict(args or {})
    if isinstance(data, dict) and isinstance(data.get("name"), str) and set(data) <= {"name", "args"}:
        return data["name"], dict(data.get("args", {}))
    raise problem("write a name, or one name with its arguments: 'name: {argument: value}'")


def check_allowed(name: str, info: ValidationInfo) -> None:
    """Refuse a dotted name, which runs code, where the reader asked for built-in names only."""
    if info.context and info.context.get("builtin_only"):
        raise problem(f"{name!r} runs code; --builtin-only refuses it")
