"""Symbolic tracing into the normal form: every weight an edge, mode-dependent modules kept as modules."""

import os
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from fxcompress.errors import CaptureError
from fxcompress.graph.hooks import refuse_lost_hooks
from fxcompress.graph.inplace import INPLACE_OPERATORS
from fxcompress.graph.inputs import expect
from fxcompress.graph.scalars import scalars
from fxcompress.nn import Choice, Mask, Quantizer

# Modules of torch whose forward is a plain function of their inputs and parameters: traced through, so that their
# weights become edges. All other modules of torch (batch norm, dropout, recurrent layers, ...) stay modules.
_TRANSPARENT = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear),
    *(nn.Embedding, nn.LayerNorm, nn.GroupNorm, nn.Flatten, nn.Unflatten, nn.Identity),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh),
    *(nn.Sigmoid, nn.Tanh, nn.Softmax, nn.LogSoftmax, nn.Softplus, nn.Mish, nn.PReLU, nn.PixelShuffle, nn.Upsample),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d, nn.ZeroPad2d),
)
_KEPT = (_NormBase, _DropoutNd, Quantizer, Mask, Choice)  # whatever a subclass does in forward
_NOT_THE_USERS = tuple(f"{Path(file).parent}{os.sep}" for file in (__file__, torch.__file__))


class _Proxy(fx.Proxy):
    """A proxy that records in-place operators as such; fx itself would forget that the tensor has other readers."""


def _inplace(target: Any) -> Any:
    def record(self: _Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return record


for _target in INPLACE_OPERATORS:
    setattr(_Proxy, f"__{_target.__name__}__", _inplace(_target))


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, root: nn.Module, fixed: Mapping[str, Any]) -> None:
        super().__init__()
        named = [*root.named_parameters(remove_duplicate=False), *root.named_buffers(remove_duplicate=False)]
        self._by_name = dict(named)
        self._by_id = {id(tensor): name for name, tensor in reversed(named)}
        self._fixed = fixed
        self.failed_in = ""
        self.without_gradient: set[fx.Node] = set()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        """Make a node as usual; note whether the model computes it under `torch.no_grad`, which a graph forgets."""
        node = super().create_node(kind, *args, **kwargs)
        if kind.startswith("call") and not torch.is_grad_enabled():
            self.without_gradient.add(node)
        return node

    def create_args_for_root(self, *args: Any, **kwargs: Any) -> tuple[Any, list[Any]]:
        """Make placeholders as usual; an argument that chooses a path has one value, a call with another fails."""
        function, values = super().create_args_for_root(*args, **kwargs)
        for index, value in enumerate(values):
            name = str(value.node.target) if isinstance(value, fx.Proxy) else ""
            if name in self._fixed:
                self.create_proxy("call_function", expect, (value, self._fixed[name], name), {})
                values[index] = self._fixed[name]
        _require_stated(self.graph, self._fixed)
        return function, values

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, nn.Embedding) and m.max_norm is not None:  # changes its weight in forward
            return True
        if isinstance(m, (nn.Sequential, *_TRANSPARENT)) or type(m).forward is nn.Module.forward:
            return False
        return isinstance(m, _KEPT) or type(m).forward.__module__.startswith(("torch.nn", "torch.ao.nn"))

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Make a parameter or buffer a node under the name by which the running module knows it (ties keep both)."""
        if not isinstance(attr_val, Tensor) or id(attr_val) not in self._by_id:
            return attr_val
        name = f"{self.scope.module_path}.{attr}" if self.scope.module_path else attr
        if self._by_name.get(name) is not attr_val:
            name = self._by_id[id(attr_val)]
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Trace as usual; the result of a transparent module takes the module's name."""
        if self.submodule_paths is not None and m not in self.submodule_paths and not m.state_dict():
            return forward(*args, **kwargs)  # made while running, for example nn.ReLU()(x)
        path = self.path_of_module(m)
        last = next(reversed(self.graph.nodes))
        try:
            result = super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed_in = self.failed_in or path
            raise
        if isinstance(m, _TRANSPARENT) and isinstance(result, fx.Proxy) and result.node > last:
            result.node._rename(path.replace(".", "_") if path != "self" else "self_")
        return result


def _require_stated(graph: fx.Graph, fixed: Mapping[str, Any]) -> None:
    """Make arguments that are None by default, but were given, required: the path that is traced needs them.

    Behind an optional argument Python takes none that is required (by keyword alone): that one gets a default.
    """
    optional = False
    for node in graph.find_nodes(op="placeholder"):
        if node.args and node.args[0] is None and node.target not in fixed and not optional:
            node.args = ()
        if optional and not node.args and not str(node.target).startswith("*"):
            node.args = (None,)
        optional = optional or bool(node.args)


def trace(model: nn.Module, fixed: Mapping[str, Any]) -> fx.Graph:
    """Return the graph of `model`, which is in eval mode, for calls whose arguments `fixed` have the given values.

    Raises CaptureError naming the module and the source line that cannot be followed.
    """
    tracer = _Tracer(model, fixed)
    refuse_lost_hooks(model, tracer.is_leaf_module)
    buffers = [(path, module, dict(module._buffers)) for path, module in model.named_modules()]
    try:
        with torch.enable_grad():
            graph = tracer.trace(model)
        _detach(graph, tracer.without_gradient)
        for path, module, before in buffers:
            _take_back_buffers(path, module, before)
        return graph
    except CaptureError:
        raise
    except Exception as error:
        module = f" in module {tracer.failed_in!r}" if tracer.failed_in else ""
        place, line = user_line(error)
        where = f" at {place} ({line})" if place else ""
        raise CaptureError(
            f"{type(model).__name__} cannot be traced{module}{where}: {' '.join(str(error).split())}"
        ) from error


def _detach(graph: fx.Graph, without_gradient: set[fx.Node]) -> None:
    """Detach the tensors that were computed without gradient where the rest of the model reads them."""
    tensors = without_gradient - scalars(graph)
    for node in list(graph.nodes):
        readers = [user for user in node.users if user not in without_gradient]
        if node in tensors and readers:
            with graph.inserting_after(node):
                detached = graph.call_method("detach", (node,))
            for reader in readers:
                reader.replace_input_with(node, detached)


def _take_back_buffers(path: str, module: nn.Module, before: Mapping[str, Tensor | None]) -> None:
    """Put buffers back that forward assigned to, where that was an in-place operation, which the graph holds."""
    for name, tensor in before.items():
        assigned: Any = module._buffers[name]
        if assigned is tensor:
            continue
        in_place = isinstance(assigned, fx.Proxy) and assigned.node.target in INPLACE_OPERATORS
        if not (in_place and assigned.node.args[0].op == "get_attr"):
            raise CaptureError(
                f"forward of {repr(path) if path else 'the model'} assigns a new value to its buffer {name!r}, which "
                f"a graph cannot; change it in place, for example with self.{name}.copy_(value)"
            )
        module._buffers[name] = tensor


def user_line(error: BaseException) -> tuple[str, str]:
    """Return the last line of the user's own code that an error came through, as `file:line` and its text, or ''."""
    traced = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in traced if not frame.filename.startswith(_NOT_THE_USERS)]
    return (f"{frames[-1].filename}:{frames[-1].lineno}", frames[-1].line or "") if frames else ("", "")
