"""Writing policy files: YAML, the same policy giving the same bytes, each write whole or not at all."""

import io
import os
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from fxcompress.policies.base import Strict
from fxcompress.staging import staged


def dump(policy: Strict) -> str:
    """Return the policy as YAML that `parse` reads back to an equal policy; the same policy gives the same bytes."""
    stream = io.StringIO()
    yaml = YAML()
    yaml.width = 118
    yaml.dump(_flow(policy.plain()), stream)
    return stream.getvalue()


def _flow(value: Any, depth: int = 0) -> Any:
    """Lay the tree out: the upper levels as blocks, leaves such as `{bits: 4, per: channel}` on one line."""
    if isinstance(value, dict):
        node = CommentedMap({key: _flow(item, depth + 1) for key, item in value.items()})
        if depth >= 4 and value and all(map(_fits_a_line, value.values())):
            node.fa.set_flow_style()
        return node
    if isinstance(value, list):
        seq = CommentedSeq([_flow(item, depth + 1) for item in value])
        if _fits_a_line(value):
            seq.fa.set_flow_style()
        return seq
    return value


def _fits_a_line(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return value == {} or not (isinstance(value, dict) or any(isinstance(part, dict | list) for part in parts))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file whole or not at all; its folder is made where it does not exist."""
    target = Path(path)
    with staged(target.parent, target.name) as folder:
        (folder / target.name).write_text(text, "utf-8")
