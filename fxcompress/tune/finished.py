"""Finished work: what tuning has changed is written as it comes, so that a killed run goes on where it was."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, fx

from fxcompress.graph.text import text
from fxcompress.staging import staged


class Finished:
    """The parts of one tuning step that are done: for each the tensors of the model that it changed, by name.

    They lie in `folder`, one file a part; with None nothing is kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    @torch.no_grad()
    def once(self, part: str, model: fx.GraphModule, names: Iterable[str], work: Callable[[], None]) -> None:
        """Do the work on one part, which changes the tensors `names`, or put back what it gave before."""
        state = model.state_dict(keep_vars=True)
        changed = {name: state[name] for name in names}
        known = self._read(part)
        if known is not None and known.keys() == changed.keys():
            for name, tensor in known.items():
                changed[name].copy_(tensor)
            return
        with torch.enable_grad():
            work()
        if self._folder is not None:
            with staged(self._folder, f"{part}.safetensors") as folder:
                values = {name: tensor.detach().clone().contiguous() for name, tensor in changed.items()}
                save_file(values, folder / f"{part}.safetensors")

    def _read(self, part: str) -> Mapping[str, Tensor] | None:
        path = None if self._folder is None else self._folder / f"{part}.safetensors"
        if path is None or not path.exists():
            return None
        try:
            return load_file(path)
        except (OSError, SafetensorError):  # damaged: done again
            return None


def finished(cache: str | os.PathLike[str] | None, *about: object, model: fx.GraphModule) -> Finished:
    """Return what is kept under `cache` of work that is `about` these things, on this graph with these values."""
    if cache is None:
        return Finished(None)
    digest = hashlib.sha256(f"{about!r}\n{text(model)}".encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(contents(tensor))
    return Finished(Path(cache) / digest.hexdigest()[:32])


def contents(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor's values."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
