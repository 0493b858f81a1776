"""Tidy an exported ONNX model: our functions in, everything out that depends on the machine or says nothing."""

import onnx_ir
from onnx_ir.passes import common
from onnxscript.optimizer import optimize_ir

from fxcompress.lowering.export_modules import DOMAIN
from fxcompress.lowering.functions import local_functions


def tidy(model: onnx_ir.Model) -> None:
    """Fold constants, add our functions, store equal tensors once, and take out metadata; `model` is changed.

    The exporter leaves stack traces (paths of this machine), names of Python classes and the shape of every
    intermediate value.
    """
    optimize_ir(model, should_fold=_may_fold)
    for function in local_functions():
        function.opset_imports[""] = model.opset_imports[""]
        model.functions[function.identifier()] = function
    model.opset_imports[DOMAIN] = 1
    for run in (
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.DeduplicateInitializersPass(size_limit=2**63),
        common.ClearMetadataAndDocStringPass(),
    ):
        run(model)
    model.metadata_props.clear()
    outside = [*model.graph.inputs, *model.graph.outputs]
    inside = [value for node in model.graph for value in node.outputs if not value.is_graph_output()]
    for value in (*outside, *inside, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for value in inside:
        value.type = value.shape = None
    _name_free_axes(outside)
    for number, value in enumerate(model.graph.outputs):
        if not value.is_graph_input():
            value.name = f"output_{number}" if number else "output"
    common.NameFixPass()(model)


def _may_fold(node: onnx_ir.Node) -> bool | None:
    """Forbid folding that would store a second form of a tied weight, leave the rest to the optimizer (None)."""
    stored = [value for value in node.inputs if value is not None and value.is_initializer()]
    tied = any(len(value.uses()) > 1 and len(value.shape or ()) > 1 for value in stored)
    return False if tied else None


def _name_free_axes(values: list[onnx_ir.Value]) -> None:
    """Call the free axes of inputs and outputs `batch`, `batch_2`, ... instead of the exporter's `s77`."""
    names: dict[str, str] = {}
    for shape in (value.shape for value in values if value.shape is not None):
        for axis, size in enumerate(shape):
            if isinstance(size, onnx_ir.SymbolicDim):
                number = len(names) + 1
                shape[axis] = names.setdefault(str(size), "batch" if number == 1 else f"batch_{number}")
