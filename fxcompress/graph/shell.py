"""Shells: copies of a model that share its parameters and buffers, to be changed while it is traced."""

import copy
import itertools
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from fxcompress.errors import CaptureError
from fxcompress.graph.ties import memory

_UNCHANGING = (bool, int, float, str, type(None))
_CONTAINERS = (list, dict, set, OrderedDict)
_OWN_COPYING = ("__deepcopy__", "__copy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__new__")


def shell(model: nn.Module) -> nn.Module:
    """Return a copy of a model's modules and attributes around the very parameters and buffers of the model."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return _copied(model, {id(tensor): tensor for tensor in tensors})


def private_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model with parameters and buffers of its own; what shared memory shares it again.

    Raises CaptureError for a hook on the gradient of a parameter, which a copy would be without.
    """
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise CaptureError(
                f"{name} has a hook on its gradient, which a copy would lose; capture with copy=False, which shares "
                "the parameters, or remove the hook and register it on the parameter of the result"
            )
    return _copied(model, _in_shared_memory(model) | _without_shape(model))


def shell_around(model: nn.Module, parts: Iterable[nn.Module]) -> nn.Module:
    """Return a copy of a model around its very parameters and modules `parts`; the rest is the copy's own."""
    return _copied(model, {id(one): one for one in itertools.chain(model.parameters(), parts)})


def _without_shape(model: nn.Module) -> dict[int, Any]:
    """Return copies, by identity, of the buffers that lazy modules have not shaped yet: torch has none of these."""
    lazy: list[Any] = [buffer for buffer in model.buffers() if is_lazy(buffer)]
    return {id(one): type(one)(one.requires_grad, one.data.device, one.data.dtype, one.persistent) for one in lazy}


def _in_shared_memory(model: nn.Module) -> dict[int, Any]:
    """Return copies, by identity, of parameters that are different objects on one memory: torch would part them."""
    by_memory: dict[object, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if not is_lazy(parameter):
            by_memory.setdefault(memory(parameter), []).append(parameter)
    copies: dict[int, Any] = {}
    for together in by_memory.values():
        if len(together) > 1:
            data = together[0].detach().clone()
            copies |= {id(one): nn.Parameter(data, one.requires_grad) for one in together}
    return copies


def _copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    try:
        return _copy(model, memo)
    except Exception as error:
        raise CaptureError(f"{type(model).__name__} cannot be copied: {error}") from error


def _copy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Copy a module as `copy.deepcopy` does, without its detour over the many attributes that cannot change."""
    if id(module) in memo:
        return memo[id(module)]
    if any(getattr(type(module), name, None) is not getattr(nn.Module, name, None) for name in _OWN_COPYING):
        return copy.deepcopy(module, memo)
    new = memo[id(module)] = type(module).__new__(type(module))
    for name, value in vars(module).items():
        if isinstance(value, _UNCHANGING):
            new.__dict__[name] = value
        elif name == "_modules":
            children = ((key, None if child is None else _copy(child, memo)) for key, child in value.items())
            new.__dict__[name] = type(value)(children)
        elif name in ("_parameters", "_buffers"):
            tensors = ((key, copy.deepcopy(tensor, memo)) for key, tensor in value.items())
            new.__dict__[name] = type(value)(tensors)
        elif type(value) in _CONTAINERS and not value:  # hooks, mostly
            new.__dict__[name] = memo.setdefault(id(value), value.copy())
        else:
            _note_computed(value, memo)
            new.__dict__[name] = copy.deepcopy(value, memo)
    return new


def _note_computed(value: Any, memo: dict[int, Any]) -> None:
    """Copy, in advance, tensors that were computed from parameters, such as by a hook that does so in each run."""
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor) and not leaf.is_leaf:
            memo.setdefault(id(leaf), leaf.detach().clone())
