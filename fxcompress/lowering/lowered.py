"""Lowering: export a model, run it beside PyTorch, and answer with what it takes and how far the two are apart."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxcompress.errors import LoweringError
from fxcompress.graph.regions import Islands
from fxcompress.lowering.engine import OnnxRuntime
from fxcompress.lowering.integer_calls import activations
from fxcompress.lowering.onnx import OPSET, file_names, write_onnx
from fxcompress.lowering.private import arguments_for, private_copy
from fxcompress.staging import staged

_FLOAT_DIFFERENCE = 1e-3  # what the order of float32 sums makes in deep networks, with room
_STEPS = 12
_MOST = 0.4  # at few bits steps are large; an engine that answers with half of each output must not pass


@dataclass(frozen=True)
class Lowered:
    """A model as an ONNX file and in an engine.

    `bytes` is the size of the file (with its data file), `weight_bytes` that of the weights in it: packed codes, and
    int8 or float tensors of two or more axes. `largest_difference` is the largest absolute difference between the
    outputs of engine and model on the example inputs, `relative_difference` the largest in units of an output's
    largest absolute value, and `max_difference` the bound that it met.
    """

    path: Path
    bytes: int
    weight_bytes: int
    opset: int
    largest_difference: float
    relative_difference: float
    max_difference: float
    engine: OnnxRuntime


def lower(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Any,
    *,
    max_difference: float | None = None,
    opset: int = OPSET,
) -> Lowered:
    """Export `model` to an ONNX file, run it in ONNX Runtime on the example inputs and compare with the model.

    `example_inputs` is one tensor, a tuple of positional arguments or a dict of keyword arguments. The model is not
    changed; a file at `path` is replaced only when everything has succeeded.

    `max_difference` bounds the relative difference. The engine rounds biases to int32 and adds in integers, PyTorch
    adds in float: a value near the middle between two codes may fall to either side, and the layers behind amplify
    that. In steps of the coarsest activation quantizer the outputs then differed by up to 2 with random weights, and
    by 5 in a trained ResNet-20. The default is 12 of these steps (4.7% at 8 bits) but at most 40%, and 0.001 without
    activation quantizers.
    Raises LoweringError where the difference is larger, a Choice is open, a Quantizer is of a form that is not
    lowered, the model cannot be exported or a package is not installed; NotReadyError where a Quantizer has no range.
    """
    if isinstance(model, Islands):
        raise LoweringError(
            f"{type(model).__name__} was captured by islands: there is no graph of the whole to export; change what "
            "`fxcompress capture` names, or capture by export"
        )
    path = Path(path)
    private, arguments = private_copy(model), arguments_for(model, example_inputs)
    bound = _default_bound(private) if max_difference is None else max_difference
    try:
        with torch.no_grad():
            expected = _tensors(private(*arguments.args, **arguments.kwargs))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise LoweringError(f"the model does not run on the example inputs: {error}") from error
    with staged(path.parent, *file_names(path)) as folder:
        file = folder / path.name
        weight_bytes = write_onnx(private, file, arguments, opset)
        size = sum(written.stat().st_size for written in file.parent.iterdir())
        engine = OnnxRuntime(file)
        largest, relative = _differences(expected, engine.run(*arguments.args, **arguments.kwargs))
        if not relative <= bound:
            raise LoweringError(
                f"ONNX Runtime differs from the model by {largest:.3g}, {relative:.3g} of the largest output: "
                f"more than max_difference={bound:.3g}"
            )
    return Lowered(path, size, weight_bytes, opset, largest, relative, bound, engine)


def _default_bound(model: nn.Module) -> float:
    graphs = [module for module in model.modules() if isinstance(module, fx.GraphModule)]
    steps = [quantizer.high - quantizer.low for gm in graphs for quantizer in activations(gm).values()]
    return min(_STEPS / min(steps), _MOST) if steps else _FLOAT_DIFFERENCE


def _tensors(outputs: Any) -> list[Tensor]:
    return [output for output in pytree.tree_leaves(outputs) if isinstance(output, Tensor)]


def _differences(expected: list[Tensor], found: list[Tensor]) -> tuple[float, float]:
    """Return the largest absolute difference, and the largest in units of its output's largest value."""
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in found]:
        shapes = ([list(tensor.shape) for tensor in outputs] for outputs in (expected, found))
        raise LoweringError("the model returns tensors of shape {}, ONNX Runtime {}".format(*shapes))
    absolute, relative = [0.0], [0.0]
    for wanted, got in zip(expected, found, strict=True):
        wanted, got = wanted.double(), got.double()
        same = (wanted == got) | (wanted.isnan() & got.isnan())
        if not same.all():
            absolute.append((wanted - got)[~same].abs().max().item())
            relative.append(absolute[-1] / max(wanted.abs().max().item(), torch.finfo().tiny))
    return torch.tensor(absolute).max().item(), torch.tensor(relative).max().item()  # unlike Python's max, NaN stays
