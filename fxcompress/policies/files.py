"""Reading policy files: YAML or JSON, each error with file and line."""

import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from fxcompress.errors import PolicyError
from fxcompress.policies.base import nearest
from fxcompress.policies.places import describe, locate, plain_tree
from fxcompress.policies.policy import Plan, Policy


def presets() -> list[str]:
    """Return the names of the policies that come with the package."""
    folder = resources.files("fxcompress.policies") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read(policy: Policy | str | os.PathLike[str] | dict[str, Any], *, builtin_only: bool = False) -> Policy:
    """Return the policy that a preset's name, a file's path, a mapping or a policy stands for.

    The result is a Plan when it holds decisions. Relative paths in a file are meant from the file's folder.
    Raises PolicyError naming file, line, key, what is accepted and the nearest spelling.
    """
    if isinstance(policy, Policy):
        return policy
    if isinstance(policy, dict):
        return _validated(policy, policy, "policy", builtin_only)
    if not isinstance(policy, str | os.PathLike):
        raise PolicyError(
            f"a policy is the name of a preset, a file, a mapping or a Policy, not {type(policy).__name__}"
        )
    path = Path(policy)
    if path.suffix not in (".yaml", ".yml", ".json"):
        return _preset(str(policy), builtin_only)
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise PolicyError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PolicyError(f"{path}: is not a text in UTF-8") from error
    return parse(text, str(path), builtin_only=builtin_only, folder=path.parent)


def _preset(name: str, builtin_only: bool) -> Policy:
    names = presets()
    if name not in names:
        raise PolicyError(
            f"no preset is named {name!r}{nearest(name, names)}; presets: {', '.join(names)}; a policy file ends in "
            ".yaml, .yml or .json"
        )
    text = (resources.files("fxcompress.policies") / "presets" / f"{name}.yaml").read_text("utf-8")
    return parse(text, f"preset {name}", builtin_only=builtin_only)


def parse(text: str, name: str, *, builtin_only: bool = False, folder: Path | None = None) -> Policy:
    """Return the policy that a text holds: JSON where `name` ends in .json, otherwise YAML.

    `name` stands for the file in errors; relative paths in the text are meant from `folder`.
    """
    tree = _tree(text, name)
    data = plain_tree(tree) if not name.endswith(".json") else json.loads(text)
    if not isinstance(data, dict):
        found = "empty" if data is None else f"a {type(data).__name__}"
        raise PolicyError(f"{name}:1: a policy is a mapping with version, steps and search, but this is {found}")
    if folder is not None:
        _anchor_tables(data, folder)
    return _validated(data, tree, name, builtin_only)


def _tree(text: str, name: str) -> Any:
    """Return the text as ruamel's nodes, which remember their lines; JSON is YAML but for tabs."""
    if name.endswith(".json"):
        try:
            json.loads(text)
        except json.JSONDecodeError as error:
            raise PolicyError(f"{name}:{error.lineno}: not valid JSON: {error.msg}") from error
        text = text.replace("\t", " ")
    try:
        return YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        said = " ".join(str(error.problem or error.context).split())
        raise PolicyError(f"{name}{line}: not valid YAML: {said}") from error
    except YAMLError as error:
        raise PolicyError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from error


def _anchor_tables(data: dict[str, Any], folder: Path) -> None:
    budgets = data["search"].get("budgets") if isinstance(data.get("search"), dict) else None
    for budget in budgets.values() if isinstance(budgets, dict) else ():
        if isinstance(budget, dict) and isinstance(budget.get("table"), str):
            budget["table"] = str(folder / budget["table"])


def _validated(data: dict[str, Any], tree: Any, name: str, builtin_only: bool) -> Policy:
    model = Plan if "plan" in data else Policy
    try:
        policy = model.model_validate(data, context={"builtin_only": builtin_only})
    except ValidationError as error:
        problems = [describe(problem, tree, name) for problem in error.errors(include_url=False)]
        raise PolicyError("\n".join(dict.fromkeys(problems))) from None
    locate(policy, tree, name)
    return policy
