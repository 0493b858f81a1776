"""Models whose tiny configurations and inputs are rows of a YAML file.

A file has four keys. `shared` holds what anchors name. `inputs` names sets of inputs; an input is a kind of tensor
with its shape, in which `B` is the batch size and `4B` four times that. `bases` names settings. `families` lists the
models by class name: what their family's base does not say (`set`) or should not say (`drop`), another `base`, other
`inputs`.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from torch import Tensor, nn

from benchmarks.zoo.entries import Case, Entry, case

_IMAGE_TOKEN = 100
_FIRST_TOKEN = 3  # those below are for padding, begin and end
_PADDING = 4  # tokens at the end of the last sample
Row = Mapping[str, Any]


def entries(library: str, build: Callable[[str, Row], nn.Module]) -> Iterator[Entry]:
    """Yield the models of the library's file; `build` makes one from its class name and settings."""
    table = YAML(typ="safe").load(Path(__file__).with_name(f"{library}.yaml"))
    for family, group in table["families"].items():
        for name, row in group["models"].items():
            row = row or {}
            base = dict(table["bases"][row.get("base", group["base"])])
            for key in row.get("drop", ()):
                del base[key]
            inputs = _merge(row.get("inputs", group["inputs"]), table["inputs"])
            yield Entry(library, family, name, partial(_case, build, name, base | row.get("set", {}), inputs))


def _merge(wanted: Any, named: Row) -> dict[str, Row]:
    """Return the inputs of a name, of a mapping, or of a list of both."""
    if isinstance(wanted, str):
        return dict(named[wanted])
    if isinstance(wanted, Mapping):
        return dict(wanted)
    merged: dict[str, Row] = {}
    for one in wanted:
        merged |= _merge(one, named)
    return merged


def _case(build: Callable[[str, Row], nn.Module], name: str, settings: Row, inputs: Mapping[str, Row]) -> Case:
    return case(build(name, settings), lambda batch: {key: _draw(row, batch) for key, row in inputs.items()})


def _draw(row: Row, batch: int) -> Any:
    """Return one input: the first key of its row is the kind of tensor."""
    (kind, dims), *_ = row.items()
    if kind == "value":
        return dims
    if kind == "each":  # the same row for each sample
        return torch.tensor([dims] * batch)
    shape = [int(dim[:-1] or 1) * batch if isinstance(dim, str) else dim for dim in dims]
    return _KINDS[kind](shape, row)


def _padded(shape: list[int], row: Row) -> Tensor:
    mask = torch.ones(shape, dtype=torch.long)
    mask[-1, -_PADDING:] = 0
    return mask


def _prompt(shape: list[int], row: Row) -> Tensor:
    ids = torch.randint(_FIRST_TOKEN, _IMAGE_TOKEN, shape)
    ids[:, 2 : 2 + row["images"]] = _IMAGE_TOKEN
    return ids


_KINDS: dict[str, Callable[[list[int], Row], Tensor]] = {
    "normal": lambda shape, row: torch.randn(shape),
    "uniform": lambda shape, row: torch.rand(shape) * row.get("below", 1),
    "integers": lambda shape, row: torch.randint(0, row["below"], shape),
    "ones": lambda shape, row: torch.ones(shape),
    "kept": lambda shape, row: torch.ones(shape, dtype=torch.long),
    "no": lambda shape, row: torch.zeros(shape, dtype=torch.bool),
    "steps": lambda shape, row: torch.arange(shape[-1]).repeat(shape[0], 1),
    "tokens": lambda shape, row: torch.randint(_FIRST_TOKEN, _IMAGE_TOKEN, shape),
    "padded": _padded,
    "prompt": _prompt,
}
