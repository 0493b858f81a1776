"""diffusers' networks from the tiny configurations of diffusers.yaml."""

from collections.abc import Iterator, Mapping
from typing import Any

import diffusers
from torch import nn

from benchmarks.zoo import configured
from benchmarks.zoo.entries import Entry


def entries() -> Iterator[Entry]:
    """Yield UNets, transformers and autoencoders."""
    return configured.entries("diffusers", _build)


def _build(name: str, settings: Mapping[str, Any]) -> nn.Module:
    return getattr(diffusers, name)(**settings)
