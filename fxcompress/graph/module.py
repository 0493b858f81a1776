"""The module around a captured graph: the state of the model under its original names, without the model's code."""

import contextlib
import copy
from keyword import iskeyword
from typing import Any, NoReturn

from torch import Tensor, fx, nn

from fxcompress.errors import CaptureError
from fxcompress.graph.shell import shell
from fxcompress.graph.traced import Traced, join, place


class CapturedModule(fx.GraphModule):
    """A GraphModule in normal form, whose copies keep the order, ties and persistence of its state."""

    def train(self, mode: bool = True) -> "CapturedModule":
        """Set the mode; parts that the model's own `train` keeps in eval mode, such as frozen norms, stay there."""
        super().train(mode)
        for path in vars(self).get(_IN_EVAL, ()) if mode else ():
            with contextlib.suppress(AttributeError):  # a pass has taken it out
                self.get_submodule(path).eval()
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "CapturedModule":
        new = super().__deepcopy__(memo)
        assert isinstance(new, CapturedModule)
        for kind in ("_parameters", "_buffers", "_modules"):
            held = {name: memo.get(id(part)) for name, part in getattr(self, kind).items()}
            getattr(new, kind).clear()
            getattr(new, kind).update(held)
        new.__dict__.update({name: value for name, value in vars(self).items() if name.startswith("_fxcompress_")})
        new.__dict__.update({name: copy.deepcopy(vars(self)[name], memo) for name in _HOOKS})
        new._non_persistent_buffers_set = copy.copy(self._non_persistent_buffers_set)
        return new


_IN_EVAL = "_fxcompress_in_eval"

# What GraphModule forgets when it is copied.
_HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook", "_state_dict_pre_hooks"),
)
_STATE_HOOKS = (
    *("_state_dict_hooks", "_state_dict_pre_hooks"),
    *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)


class Holder(nn.Module):
    """What is left of a module whose forward became part of a graph: its parameters, buffers and children.

    `path` is its name in the graph and `kind` the class that it was of.
    """

    def __init__(self, path: str, kind: str) -> None:
        super().__init__()
        self._holds = f"{path!r} ({kind})"

    def forward(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise CaptureError, as the code is gone."""
        raise CaptureError(
            f"{self._holds} cannot be called: this graph computes what it did and left it nothing but its state; "
            f"call the whole graph or the original model, or {_KEEPS_CODE}"
        )

    def _refuse_hook(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise CaptureError(
            f"a hook on {self._holds} would never run: this graph computes what it did and does not call it; hook "
            f"the graph itself or a module that it calls, such as a batch norm, or {_KEEPS_CODE}"
        )

    register_forward_hook = register_forward_pre_hook = _refuse_hook
    register_full_backward_hook = register_full_backward_pre_hook = register_backward_hook = _refuse_hook


_KEEPS_CODE = 'capture the model with way="islands" (in a policy: capture: islands)'
_RESERVED = (fx.GraphModule(nn.Module(), fx.Graph()), nn.Module())  # to be asked for their attributes


def module_around(traced: Traced, model: nn.Module, name: str) -> CapturedModule:
    """Return the module of a graph that was traced from `model`, of the class name `name`.

    Modules that the graph calls are taken as they are; all others become holders of the same parameters, buffers
    and children, used or not. Shared modules stay shared.
    Raises CaptureError for a name that a GraphModule cannot have, and for hooks of a state dict that need the code
    of a module.
    """
    _refuse_reserved_names(model, name)
    refuse_keywords(traced, name)
    gm = CapturedModule(nn.Module(), fx.Graph(), name)
    targets = {str(node.target) for node in traced.graph.nodes if node.op == "call_module"}
    called = {model.get_submodule(target) for target in targets - traced.made.keys()}
    _copy_state(model, gm, "", {module: module for module in called} | {model: gm})
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            _register_constant(model, gm, str(node.target))
    graph = fx.Graph()
    place(traced, "", graph, gm, {})
    gm.graph = graph
    gm.__dict__[_IN_EVAL] = [
        path for path, part in shell(model).train().named_modules() if path and not part.training
    ]
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


def _copy_state(source: nn.Module, target: nn.Module, path: str, known: dict[nn.Module, nn.Module]) -> None:
    target.training = source.training
    _copy_state_hooks(source, target, path)
    for name, parameter in source._parameters.items():
        target.register_parameter(name, parameter)
    for name, buffer in source._buffers.items():
        target.register_buffer(name, buffer, persistent=name not in source._non_persistent_buffers_set)
    for name, child in source._modules.items():
        if child is not None and child not in known:
            inner = join(path, name)
            known[child] = Holder(inner, type(child).__name__)
            _copy_state(child, known[child], inner, known)
        target.add_module(name, None if child is None else known[child])


def _copy_state_hooks(source: nn.Module, target: nn.Module, path: str) -> None:
    """Keep the hooks by which older state dicts are read, and those of torch, that do without the module.

    Raises CaptureError for any other.
    """
    for kind in _STATE_HOOKS:
        for key, hook in getattr(source, kind).items():
            function = getattr(hook, "hook", hook)  # torch wraps those that are loaded by
            reads = kind == "_load_state_dict_pre_hooks" or str(function.__module__).startswith("torch.")
            if getattr(hook, "with_module", False) or not reads:
                name = getattr(function, "__qualname__", type(function).__qualname__)
                raise CaptureError(
                    f"{path or 'the model'} has a hook on its state dict, {name}, which a graph cannot keep; remove "
                    f"it before with the handle that registered it, or {_KEEPS_CODE}"
                )
            getattr(target, kind)[key] = hook


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
