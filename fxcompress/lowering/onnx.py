"""ONNX: write a model as an ONNX file with QuantizeLinear and DequantizeLinear, its weights at their own width."""

import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxcompress.errors import LoweringError
from fxcompress.graph.inputs import Arguments
from fxcompress.lowering.bake import bake
from fxcompress.lowering.private import arguments_for, private_copy, require
from fxcompress.staging import staged

if TYPE_CHECKING:
    import onnx_ir

OPSET = 18  # the lowest that has all that is emitted, so that the most engines read the file
_SINGLE_FILE_BYTES = 2**31 - 2**24  # a protobuf message ends at 2 GB; the rest is for the graph itself


def export_onnx(model: nn.Module, path: str | os.PathLike[str], example_inputs: Any, *, opset: int = OPSET) -> None:
    """Write `model` as an ONNX file at `path`; a file that stands there is replaced at the end, whole, or not at all.

    Weights with a quantizer are stored as packed integers (`fxcompress.nn.packing`), tied weights once. The first
    axis of each input stays free where the model permits. The bytes depend on nothing but the model and the shapes of
    `example_inputs` (one tensor, a tuple of positional arguments or a dict of keyword arguments). Above 2 GB the
    weights go to a second file, `path` + ".data". The model is not changed.
    Raises LoweringError where a Choice is open, a Quantizer is of a form that is not lowered, the model cannot be
    exported or a package is not installed, NotReadyError where a Quantizer has no range.
    """
    path = Path(path)
    with staged(path.parent, *file_names(path)) as folder:
        write_onnx(private_copy(model), folder / path.name, arguments_for(model, example_inputs), opset)


def file_names(path: Path) -> tuple[str, str]:
    """Return the names of the files that an export may write, the data before the file that names it."""
    return f"{path.name}.data", path.name


def write_onnx(private: nn.Module, path: Path, arguments: Arguments, opset: int) -> int:
    """Bake `private`, which is changed, write it at `path`, and return the bytes of its weights."""
    require("onnx", "onnxscript")
    if opset < OPSET:
        raise LoweringError(f"opset {opset} does not have the operators that unpack weights: {OPSET} is the lowest")
    import onnx_ir

    from fxcompress.lowering.tidy import tidy

    for module in list(private.modules()):
        if isinstance(module, fx.GraphModule):
            bake(module, whole=module is private)
    model = _translate(private, arguments, opset)
    tidy(model)
    stored = list(model.graph.initializers.values())
    fits = sum(map(_bytes, stored)) < _SINGLE_FILE_BYTES
    onnx_ir.save(model, path, external_data=None if fits else f"{path.name}.data")
    return sum(_bytes(value) for value in stored if _is_weight(value))


def _translate(private: nn.Module, arguments: Arguments, opset: int) -> "onnx_ir.Model":
    args, kwargs = pytree.tree_map(_free_first_axis, tuple(arguments))
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)  # it warns of each optional package that is not installed
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # what torch deprecates inside torch is not the caller's
            program = torch.onnx.export(
                private,
                arguments.args,
                kwargs=arguments.kwargs,
                dynamic_shapes=kwargs or args,
                opset_version=opset,
                dynamo=True,
                optimize=False,  # done in `tidy`
                verbose=False,
            )
    except Exception as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise LoweringError(f"{type(private).__name__} cannot be exported to ONNX: {reason}") from error
    finally:
        exporter.setLevel(level)
    assert program is not None
    return program.model


def _free_first_axis(value: Any) -> Any:
    return {0: torch.export.Dim.AUTO} if isinstance(value, Tensor) and value.dim() else None


def _bytes(value: "onnx_ir.Value") -> int:
    return 0 if value.const_value is None else value.const_value.nbytes


def _is_weight(value: "onnx_ir.Value") -> bool:
    """Whether a stored tensor holds packed codes, or floats or codes along two or more axes."""
    packed = any(node.op_type == "Unpack" for node in value.consumers())
    numbers = value.dtype is not None and (value.dtype.is_floating_point() or value.dtype.name == "INT8")
    return packed or (numbers and len(value.shape or ()) > 1)
