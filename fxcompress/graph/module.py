"""The module around a captured graph: the state of the model under its original names, without the model's code."""

import copy
from keyword import iskeyword
from typing import Any

from torch import Tensor, fx, nn

from fxcompress.errors import CaptureError
from fxcompress.graph.traced import Traced, place


class CapturedModule(fx.GraphModule):
    """A GraphModule in normal form, whose copies keep the order, ties and persistence of its state."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "CapturedModule":
        new = super().__deepcopy__(memo)
        assert isinstance(new, CapturedModule)
        for kind in ("_parameters", "_buffers", "_modules"):
            held = {name: memo.get(id(part)) for name, part in getattr(self, kind).items()}
            getattr(new, kind).clear()
            getattr(new, kind).update(held)
        new.__dict__.update({name: value for name, value in vars(self).items() if name.startswith("_fxcompress_")})
        new._non_persistent_buffers_set = copy.copy(self._non_persistent_buffers_set)
        return new


_RESERVED = (fx.GraphModule(nn.Module(), fx.Graph()), nn.Module())  # to be asked for their attributes


def module_around(traced: Traced, model: nn.Module, name: str) -> CapturedModule:
    """Return the module of a graph that was traced from `model`, of the class name `name`.

    Modules that the graph calls are taken as they are; all others become plain modules with the same parameters,
    buffers and children, used or not. Shared modules stay shared.
    Raises CaptureError for a name that a GraphModule cannot have.
    """
    _refuse_reserved_names(model, name)
    refuse_keywords(traced, name)
    gm = CapturedModule(nn.Module(), fx.Graph(), name)
    targets = {str(node.target) for node in traced.graph.nodes if node.op == "call_module"}
    called = {model.get_submodule(target) for target in targets - traced.made.keys()}
    _copy_state(model, gm, {module: module for module in called} | {model: gm})
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            _register_constant(model, gm, str(node.target))
    graph = fx.Graph()
    place(traced, "", graph, gm, {})
    gm.graph = graph
    return gm


def _refuse_reserved_names(model: nn.Module, name: str) -> None:
    for own in (*model._modules, *model._parameters, *model._buffers):
        if hasattr(_RESERVED[0], own) and not hasattr(_RESERVED[1], own):
            raise CaptureError(
                f"{name} calls one of its own parts {own!r}, a name that torch.fx.GraphModule needs for itself; "
                "rename it, or put the model into a module of its own: nn.Sequential(model)"
            )


def refuse_keywords(traced: Traced, name: str) -> None:
    """Raise CaptureError for a part that the code of a graph cannot name; `name` is what the model is called."""
    for node in traced.graph.nodes:
        if node.op in ("get_attr", "call_module") and any(map(iskeyword, str(node.target).split("."))):
            raise CaptureError(
                f"{name} calls one of its parts {node.target!r}; torch.fx cannot write a name with a Python keyword "
                "in it; rename that part"
            )


def _copy_state(source: nn.Module, target: nn.Module, known: dict[nn.Module, nn.Module]) -> None:
    target.training = source.training
    for name, parameter in source._parameters.items():
        target.register_parameter(name, parameter)
    for name, buffer in source._buffers.items():
        target.register_buffer(name, buffer, persistent=name not in source._non_persistent_buffers_set)
    for name, child in source._modules.items():
        if child is not None and child not in known:
            known[child] = nn.Module()
            _copy_state(child, known[child], known)
        target.add_module(name, None if child is None else known[child])


def _register_constant(source: nn.Module, target: nn.Module, name: str) -> None:
    """Hold a tensor that is a plain attribute of the model, so that it moves with it; it is not part of its state."""
    path, _, leaf = name.rpartition(".")
    owner = target.get_submodule(path)
    if not hasattr(owner, leaf):
        value: Any = getattr(source.get_submodule(path), leaf)
        if isinstance(value, Tensor):
            owner.register_buffer(leaf, value, persistent=False)
        else:
            setattr(owner, leaf, value)
