"""Symbolic tracing into the normal form: every weight an edge, mode-dependent modules kept as modules."""

import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxcompress.errors import CaptureError

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


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        named = [*root.named_parameters(remove_duplicate=False), *root.named_buffers(remove_duplicate=False)]
        self._by_name = dict(named)
        self._by_id = {id(tensor): name for name, tensor in reversed(named)}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, nn.Embedding) and m.max_norm is not None:  # changes its weight in forward
            return True
        return not isinstance(m, _TRANSPARENT) and super().is_leaf_module(m, module_qualified_name)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Make a parameter or buffer a node under the name by which the running module knows it (ties keep both)."""
        if not isinstance(attr_val, Tensor) or id(attr_val) not in self._by_id:
            return attr_val
        name = f"{self.scope_path}.{attr}" if self.scope_path else attr
        if self._by_name.get(name) is not attr_val:
            name = self._by_id[id(attr_val)]
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    @property
    def scope_path(self) -> str:
        """The qualified name of the module that is being traced."""
        return self.scope.module_path

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Trace as usual; the result of a transparent module takes the module's name."""
        nodes_before = len(self.graph.nodes)
        result = super().call_module(m, forward, args, kwargs)
        if isinstance(m, _TRANSPARENT) and isinstance(result, fx.Proxy) and len(self.graph.nodes) > nodes_before:
            result.node._rename(self.path_of_module(m).replace(".", "_"))
        return result


def trace(model: nn.Module) -> fx.Graph:
    """Return the graph of `model`, which is in eval mode.

    Raises CaptureError naming the module and the source line that cannot be followed.
    """
    tracer = _Tracer(model)
    try:
        return tracer.trace(model)
    except Exception as error:
        where = _user_frame(error)
        module = f" in module {tracer.scope_path!r}" if hasattr(tracer, "scope") and tracer.scope_path else ""
        raise CaptureError(
            f"{type(model).__name__} cannot be traced{module}{where}: {' '.join(str(error).split())}"
        ) from error


def _user_frame(error: BaseException) -> str:
    inside_torch = str(Path(torch.__file__).parent)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(inside_torch)]
    frames = [f for f in frames if f.filename != __file__]
    return f" at {frames[-1].filename}:{frames[-1].lineno} ({frames[-1].line})" if frames else ""
