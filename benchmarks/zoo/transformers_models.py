"""transformers' architectures from the tiny configurations of transformers.yaml."""

from collections.abc import Iterator, Mapping
from typing import Any

import transformers
from torch import nn

from benchmarks.zoo import configured
from benchmarks.zoo.entries import Entry


def entries() -> Iterator[Entry]:
    """Yield the architectures of every kind."""
    return configured.entries("transformers", _build)


def _build(name: str, settings: Mapping[str, Any]) -> nn.Module:
    model = getattr(transformers, name)
    return model(model.config_class(**settings))
