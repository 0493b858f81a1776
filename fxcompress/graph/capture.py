"""Capture: a private copy of a model as a graph in normal form, checked against the original."""

import copy
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxcompress.errors import CaptureError
from fxcompress.graph.inputs import Arguments, as_arguments
from fxcompress.graph.operators import normalize_arguments
from fxcompress.graph.symbolic import trace

_DROPOUT = {F.dropout: nn.Dropout, F.dropout2d: nn.Dropout2d, F.dropout3d: nn.Dropout3d}
_DROPOUT |= {F.alpha_dropout: nn.AlphaDropout, torch.dropout: nn.Dropout}


def capture(model: nn.Module, example_inputs: Any = None) -> fx.GraphModule:
    """Return a private copy of `model` as a graph in which every weight is an edge; `model` is not changed.

    Convolutions, linear layers and embeddings become function calls on `get_attr` nodes under the parameters' original
    qualified names; batch norm and dropout stay modules, so that train and eval mode work. With `example_inputs` (one
    tensor, a tuple of positional arguments or a dict of keyword arguments) the graph is run beside the original.
    Raises CaptureError where the model cannot be traced, or where the two differ.
    """
    private = _copy(model)
    modes = {module: module.training for module in private.modules()}
    private.eval()
    graph = trace(private)
    expected = None if example_inputs is None else _run(private, as_arguments(example_inputs))
    gm = fx.GraphModule(private, graph, type(model).__name__)
    _keep_all_state(private, gm)
    _normalize(gm)
    gm.eval()
    if example_inputs is not None:
        _check(expected, _run(gm, as_arguments(example_inputs)), type(model).__name__)
    for module in gm.modules():
        module.training = modes.get(module, model.training)
    return gm


def _copy(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise CaptureError(f"a model is a torch.nn.Module, not {type(model).__name__}")
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise CaptureError(f"{type(model).__name__} cannot be copied: {error}") from error


def _keep_all_state(private: nn.Module, gm: fx.GraphModule) -> None:
    """Carry over parameters and buffers that no node uses, so that the original's state_dict still fits."""
    present = {id(module) for module in gm.modules()}
    for path, module in private.named_modules(remove_duplicate=False):
        if id(module) in present or not (module._parameters or module._buffers):
            continue
        owner = _submodule(gm, path)
        for name, parameter in module._parameters.items():
            if name not in owner._parameters:
                owner.register_parameter(name, parameter)
        for name, buffer in module._buffers.items():
            if name not in owner._buffers:
                owner.register_buffer(name, buffer, persistent=name not in module._non_persistent_buffers_set)
            elif name in module._non_persistent_buffers_set:
                owner._non_persistent_buffers_set.add(name)


def _submodule(gm: fx.GraphModule, path: str) -> nn.Module:
    owner: nn.Module = gm
    for part in path.split(".") if path else ():
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = getattr(owner, part)
    return owner


def _normalize(gm: fx.GraphModule) -> None:
    """Bring the traced graph into the normal form: one spelling for each operator, nothing frozen in eval mode."""
    for node in list(gm.graph.nodes):
        if node.op != "call_function":
            continue
        only_use = bool(node.args) and isinstance(node.args[0], fx.Node) and len(node.args[0].users) == 1
        if node.target is operator.iadd and only_use:
            node.target = operator.add
        if only_use and node.kwargs.get("inplace"):
            node.kwargs = node.kwargs | {"inplace": False}
        if node.kwargs.get("inplace") is False:
            node.kwargs = {name: value for name, value in node.kwargs.items() if name != "inplace"}
        if node.target in _DROPOUT:
            _dropout_to_module(gm, node)
        else:
            normalize_arguments(node)
    gm.graph.eliminate_dead_code()
    gm.recompile()


def _dropout_to_module(gm: fx.GraphModule, node: fx.Node) -> None:
    """Turn `F.dropout(x, p, training=self.training)`, which tracing freezes in eval mode, into a module."""
    given = dict(zip(("input", "p", "training", "inplace"), node.args, strict=False)) | node.kwargs
    if given.get("training", True):  # stated as always on: not a matter of mode
        return
    name = node.name
    gm.add_submodule(name, _DROPOUT[node.target](given.get("p", 0.5)))
    with gm.graph.inserting_before(node):
        node.replace_all_uses_with(gm.graph.call_module(name, (given["input"],)))
    gm.graph.erase_node(node)


def _run(module: nn.Module, arguments: Arguments) -> Any:
    devices = {tensor.device for tensor in module.parameters() if tensor.device.type == "cuda"}
    with torch.no_grad(), torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(0)
        return module(*copy.deepcopy(arguments.args), **copy.deepcopy(arguments.kwargs))


def _check(expected: Any, found: Any, name: str) -> None:
    wanted, structure = pytree.tree_flatten(expected)
    got, other = pytree.tree_flatten(found)
    if structure != other:
        raise CaptureError(f"the graph of {name} returns {other}, the model returns {structure}")
    for index, (a, b) in enumerate(zip(wanted, got, strict=True)):
        if isinstance(a, Tensor) and not torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True):
            difference = (a - b).abs().max().item()
            raise CaptureError(
                f"the graph of {name} does not compute what the model does: output {index} differs by "
                f"{difference:.3g}"
            )
        if not isinstance(a, Tensor) and a != b:
            raise CaptureError(f"the graph of {name} returns {b!r} as output {index}, the model returns {a!r}")
