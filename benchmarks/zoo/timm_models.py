"""timm's models: for each of its modules, the smallest model of each family of names (`resnet`, `resnext`)."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import timm

from benchmarks.zoo.entries import Case, Entry, case, images

_PIXELS = 128  # for models that take any size
# The smallest model of the family has more than 150 million parameters: it is cut in depth.
_CUT: dict[str, dict[str, Any]] = {"deepseek_vit_412m": {"depth": 4}, "gemma4_vit_167m": {"depth": 4}}
_NAMES = Path(__file__).with_name("timm.txt").read_text().split()


def entries() -> Iterator[Entry]:
    """Yield the models of timm.txt; their family is the module of timm that defines them.

    Raises ValueError for a module of timm without a model.
    """
    families = {name: timm.model_entrypoint(name).__module__.rpartition(".")[2] for name in _NAMES}
    if missing := set(timm.list_modules()) - set(families.values()):
        raise ValueError(f"no model of {', '.join(sorted(missing))} is in the zoo")
    for name, family in families.items():
        yield Entry("timm", family, name, partial(_build, name))


def _build(name: str) -> Case:
    model = timm.create_model(name, pretrained=False, **_CUT.get(name, {}))
    return case(model, images(_pixels(model.pretrained_cfg)))


def _pixels(configuration: dict[str, Any]) -> int:
    if configuration.get("fixed_input_size"):
        return configuration["input_size"][-1]
    return (configuration.get("min_input_size") or (_PIXELS,))[-1]
