"""Places: on which line of a policy file a value stands, and problems said as `file:line: key: what is wrong`."""

import re
from typing import Any

from ruamel.yaml.comments import CommentedMap, CommentedSeq

from fxcompress.policies.base import Strict, nearest

_SAID = {
    "missing": "is required",
    "tuple_type": "should be a list",
    "dict_type": "should be a mapping",
    "model_type": "should be a mapping",
    "string_type": "should be a text",
    "too_short": "should not be empty",
    "int_type": "should be a whole number",
    "int_parsing": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_type": "should be a number",
    "float_parsing": "should be a number",
    "bool_type": "should be true or false",
    "bool_parsing": "should be true or false",
}


def describe(problem: Any, tree: Any, name: str) -> str:
    """Say one of pydantic's validation problems with the place where it stands in the file `name`."""
    where, node, line = "", tree, _line_of(tree)
    missing = problem["type"] == "missing"
    exact = True
    for part in problem["loc"]:
        exact = _holds(node, part)
        if exact:
            line = _line_of(node, part) or line
            node = node[part]
        if exact or (missing and part == problem["loc"][-1]):
            where += f"[{part}]" if isinstance(part, int) else f".{part}" if where else str(part)
    said = _SAID.get(problem["type"], problem["msg"].replace("Input should be", "should be"))
    if said.startswith("should") and exact and where:
        options = re.findall("'([^']*)'", str(problem.get("ctx", {}).get("expected", "")))
        said += f", not {brief(node)}" + (nearest(node, options) if isinstance(node, str) else "")
    return f"{name}:{line}: {where or 'policy'}: {said}" if line else f"{name}: {where or 'policy'}: {said}"


def _holds(node: Any, part: Any) -> bool:
    if isinstance(node, dict):
        return part in node
    return isinstance(node, list) and isinstance(part, int) and part < len(node)


def brief(node: Any) -> str:
    """Return a value as it may stand in a message: on one line, cut where it is long."""
    text = repr(plain_tree(node))
    return text if len(text) <= 60 else f"{text[:57]}..."


def _line_of(node: Any, key: Any = None) -> int | None:
    if not isinstance(node, CommentedMap | CommentedSeq):
        return None
    if key is None:
        return int(node.lc.line) + 1
    places = node.lc.data or {}  # without what a merge (<<) brought in
    return int(places[key][0]) + 1 if key in places else None


def locate(value: Any, tree: Any, name: str) -> None:
    """Write on each part of a policy the line of the file `name` that it was read from."""
    if isinstance(value, Strict):
        line = _line_of(tree)
        value._at = f"{name}:{line}" if line else ""
        for field in value.model_fields_set:
            if isinstance(tree, dict) and field in tree:
                locate(getattr(value, field), tree[field], name)
    elif isinstance(value, tuple) and isinstance(tree, list):
        for item, node in zip(value, tree, strict=False):
            locate(item, node, name)
    elif isinstance(value, dict) and isinstance(tree, dict):
        for key in value.keys() & tree.keys():
            locate(value[key], tree[key], name)


def plain_tree(node: Any) -> Any:
    """Turn ruamel's nodes, which remember their place, into ordinary Python values."""
    if isinstance(node, dict):
        return {str(key): plain_tree(value) for key, value in node.items()}
    if isinstance(node, list):
        return [plain_tree(value) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node
