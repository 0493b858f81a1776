"""Saving and loading: `model.safetensors` and `policy.yaml` (the plan) in a folder; nothing is pickled."""

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from fxcompress.errors import CompressError
from fxcompress.graph.ties import memory
from fxcompress.pipeline import rebuild
from fxcompress.planning.holder import plan_of
from fxcompress.policies import Plan, dump, parse
from fxcompress.staging import staged

MODEL, POLICY = "model.safetensors", "policy.yaml"


def save(model: nn.Module, directory: str | os.PathLike[str]) -> None:
    """Write a compressed model as `model.safetensors` and `policy.yaml`; each file is replaced whole or not at all.

    Raises CompressError when `model` was not made by `transform` or `load`.
    """
    plan = dump(plan_of(model))
    folder = Path(directory)
    owners = _owners(getattr(model, "_orig_mod", model))
    tensors = {name: tensor.detach().contiguous() for name, tensor in owners.items()}
    # The model's file holds the plan too, and tells which policy.yaml it replaces: should the machine stop between
    # the two files, load goes on from the one that is complete.
    metadata = {"plan": plan, "replaces": _digest(_text(folder / POLICY))}
    with staged(folder, MODEL, POLICY) as staging:
        save_file(tensors, staging / MODEL, metadata=metadata)
        (staging / POLICY).write_text(plan, "utf-8")


def load(directory: str | os.PathLike[str], model: nn.Module, *, example_inputs: Any = None) -> fx.GraphModule:
    """Rebuild a saved compressed model, bit for bit, on a fresh instance of the original; `model` is not changed.

    `example_inputs` are needed where the model's path depends on which arguments are given, as for `transform`.
    Raises CompressError when the files are missing, do not belong together, or were saved from another model.
    """
    folder = Path(directory)
    metadata, tensors = _read(folder / MODEL)
    if "plan" not in metadata:
        raise CompressError(f"{folder / MODEL} holds no plan; it was not written by fxcompress.save")
    written = _text(folder / POLICY)
    if written != metadata.get("plan") and _digest(written) != metadata.get("replaces"):
        raise CompressError(
            f"{folder / POLICY} is not the plan that {folder / MODEL} was saved with: it was edited; apply an edited "
            "plan with transform(model, plan)"
        )
    plan = parse(metadata["plan"], str(folder / POLICY))
    assert isinstance(plan, Plan)
    if plan.capture in ("export", "islands") and example_inputs is None:
        raise CompressError(f"{folder} was captured by {plan.capture}, which runs the model: pass example_inputs=...")
    try:
        gm = rebuild(model, plan, example_inputs=example_inputs)
    except CompressError as error:
        raise CompressError(f"{folder} was saved from another model than {type(model).__name__}: {error}") from error
    _fill(gm, tensors, f"{folder / MODEL} was saved from another model than {type(model).__name__}")
    return gm


def _text(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _owners(model: nn.Module) -> dict[str, Tensor]:
    """Return each tensor of the state under its first name; tied names come once."""
    state = model.state_dict(keep_vars=True)
    first: dict[Any, str] = {}
    return {name: tensor for name, tensor in state.items() if first.setdefault(memory(tensor), name) == name}


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CompressError(f"{path} cannot be read: {error}") from error


def _fill(gm: fx.GraphModule, tensors: dict[str, Tensor], problem: str) -> None:
    expected = _owners(gm)
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        said = f"the file lacks {missing[0]!r}" if missing else f"the model has no {unknown[0]!r}"
        raise CompressError(f"{problem}: {said} ({len(missing)} missing, {len(unknown)} unknown)")
    for name, tensor in tensors.items():
        if expected[name].shape != tensor.shape:
            shapes = f"{tuple(tensor.shape)} in the file, {tuple(expected[name].shape)} in the model"
            raise CompressError(f"{problem}: {name!r} is {shapes}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            expected[name].data = expected[name].data.to(tensor.dtype)
    gm.load_state_dict(tensors, strict=False)
