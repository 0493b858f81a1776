"""Writing policy files: YAML, the same policy giving the same bytes, each write whole or not at all."""

import io
import os
import tempfile
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from fxcompress.policies.base import Strict


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
        if all(not isinstance(item, dict | list) or not item for item in value.values()) and depth >= 4 and value:
            node.fa.set_flow_style()
        return node
    if isinstance(value, list):
        seq = CommentedSeq([_flow(item, depth + 1) for item in value])
        if all(not isinstance(item, dict | list) for item in value):
            seq.fa.set_flow_style()
        return seq
    return value


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file whole or not at all: to a temporary name beside it, then rename."""
    target = Path(path)
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
