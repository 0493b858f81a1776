"""Reading policy files: YAML or JSON, each error with file and line."""

import os
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError

from fxcompress.errors import PolicyError
from fxcompress.policies.base import Strict, nearest
from fxcompress.policies.policy import Plan, Policy


def presets() -> list[str]:
    """Return the names of the policies that come with the package."""
    folder = resources.files("fxcompress.policies") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read(policy: "Policy | str | os.PathLike[str] | dict[str, Any]", *, builtin_only: bool = False) -> Policy:
    """Return the policy that a preset's name, a file's path, a mapping or a policy stands for.

    The result is a Plan when it holds decisions. Relative paths in a file are meant from the file's folder.
    Raises PolicyError naming file, line, key, what is accepted and the nearest spelling.
    """
    if isinstance(policy, Policy):
        return policy
    if isinstance(policy, dict):
        return _validated(policy, policy, "policy", builtin_only)
    path = Path(policy)
    if path.suffix not in (".yaml", ".yml", ".json"):
        if str(policy) not in presets():
            raise PolicyError(
                f"no preset is named {str(policy)!r}{nearest(str(policy), presets())}; presets: {', '.join(presets())}; "
                "a policy file ends in .yaml, .yml or .json"
            )
        text = (resources.files("fxcompress.policies") / "presets" / f"{policy}.yaml").read_text("utf-8")
        return parse(text, f"preset {policy}", builtin_only=builtin_only)
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise PolicyError(f"{path}: cannot be read: {error.strerror}") from error
    return parse(text, str(path), builtin_only=builtin_only, folder=path.parent)


def parse(text: str, name: str, *, builtin_only: bool = False, folder: Path | None = None) -> Policy:
    """Return the policy that a text in YAML or JSON holds; `name` stands for the file in errors."""
    try:
        tree = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        problem = " ".join(str(error.problem or error.context).split())
        raise PolicyError(f"{name}{line}: not valid YAML: {problem}") from error
    data = _plain(tree)
    if not isinstance(data, dict):
        raise PolicyError(
            f"{name}:1: a policy is a mapping with version, steps and search, not {type(data).__name__}"
        )
    if folder is not None:
        _anchor_tables(data, folder)
    return _validated(data, tree, name, builtin_only)


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
        problems = [_describe(problem, tree, name) for problem in error.errors(include_url=False)]
        raise PolicyError("\n".join(dict.fromkeys(problems))) from None
    _locate(policy, tree, name)
    return policy


def _describe(problem: Any, tree: Any, name: str) -> str:
    """Say one validation problem as `file:line: key: what is wrong`."""
    key = problem.get("ctx", {}).get("key")
    where, node, line = [], tree, _line_of(tree)
    for part in (*problem["loc"], *([key] if key else [])):
        inside = isinstance(node, dict) and part in node or isinstance(node, list) and isinstance(part, int)
        if inside and (not isinstance(part, int) or part < len(node)):
            line = _line_of(node, part) or line
            node = node[part]
            where.append(f"[{part}]" if isinstance(part, int) else f".{part}" if where else str(part))
        elif problem["type"] == "missing" and part == problem["loc"][-1]:
            where.append(f".{part}" if where else str(part))
    place = f"{name}:{line}" if line else name
    said = {"missing": "is required"}.get(problem["type"], problem["msg"])
    for ours, theirs in (
        ("should be", "Input should be"),
        ("a list", "a valid tuple"),
        ("a mapping", "a valid dictionary"),
    ):
        said = said.replace(theirs, ours)
    standard = not any(word in problem["type"] for word in ("missing", "key", "kind", "name"))
    got = f", not {_brief(node)}" if standard and where and problem["msg"].startswith("Input should") else ""
    return f"{place}: {''.join(where) or 'policy'}: {said}{got}"


def _brief(node: Any) -> str:
    text = repr(_plain(node))
    return text if len(text) <= 60 else f"{text[:57]}..."


def _line_of(node: Any, key: Any = None) -> int | None:
    if not isinstance(node, CommentedMap | CommentedSeq):
        return None
    if key is None:
        return int(node.lc.line) + 1
    position = node.lc.key(key) if isinstance(node, CommentedMap) else node.lc.item(key)
    return int(position[0]) + 1


def _locate(value: Any, tree: Any, name: str) -> None:
    """Write on each part of the policy the line it was read from."""
    if isinstance(value, Strict):
        line = _line_of(tree)
        value._at = f"{name}:{line}" if line else ""
        for field in value.model_fields_set:
            if isinstance(tree, dict) and field in tree:
                _locate(getattr(value, field), tree[field], name)
    elif isinstance(value, tuple) and isinstance(tree, list):
        for item, node in zip(value, tree, strict=False):
            _locate(item, node, name)
    elif isinstance(value, dict) and isinstance(tree, dict):
        for key in value.keys() & tree.keys():
            _locate(value[key], tree[key], name)


def _plain(node: Any) -> Any:
    """Turn ruamel's nodes, which remember their place, into ordinary Python values."""
    if isinstance(node, dict):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node
