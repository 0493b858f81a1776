"""The tracer: runs a model's Python on proxies, with every weight an edge."""

from collections.abc import Mapping, Set
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxcompress.graph.inputs import expect
from fxcompress.graph.module_kinds import TRANSPARENT, is_kept, is_opaque
from fxcompress.graph.tracing.inplace import INPLACE_OPERATORS

_VIEWS = {"T", "mT", "H", "mH", "real", "imag", "data"}


class _Proxy(fx.Proxy):
    """A proxy that records in-place operators as such; fx itself would forget that the tensor has other readers."""

    def __getattr__(self, name: str) -> Any:
        """Record what is a tensor where the code has it; fx itself waits until it is used, which may be elsewhere."""
        attribute = super().__getattr__(name)
        if name in _VIEWS:
            attribute.node  # noqa: B018
        return attribute


def _inplace(target: Any) -> Any:
    def record(self: _Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return record


for _target in INPLACE_OPERATORS:
    setattr(_Proxy, f"__{_target.__name__}__", _inplace(_target))


class Tracer(fx.Tracer):
    """Follows calls whose arguments `fixed` have the given values, and looks into the kept modules `followed`.

    Tells in which module each node is computed (`scopes`) and of which module it is the result (`names`), and in
    which module it `failed_in`.
    """

    proxy_buffer_attributes = True

    def __init__(self, root: nn.Module, fixed: Mapping[str, Any], followed: Set[nn.Module]) -> None:
        super().__init__()
        named = [*root.named_parameters(remove_duplicate=False), *root.named_buffers(remove_duplicate=False)]
        self._by_name = dict(named)
        self._by_id = {id(tensor): name for name, tensor in reversed(named)}
        self._fixed, self._followed = fixed, followed
        self.failed_in = ""
        self.without_gradient: set[fx.Node] = set()
        self.scopes: dict[fx.Node, str] = {}
        self.names: dict[fx.Node, str] = {}

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        """Make a node as usual; note its module, and whether it is under `torch.no_grad`, which a graph forgets."""
        node = super().create_node(kind, *args, **kwargs)
        self.scopes[node] = self.scope.module_path
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

    def trace_alone(self, module: nn.Module) -> fx.Graph:
        """Trace a module that calls no others as `trace` does, without its patches.

        `trace` patches a method of every kind of module, which takes longer the more kinds a process knows.
        """
        self.root, self.graph = module, fx.Graph(tracer_cls=type(self))
        self.tensor_attrs, self.submodule_paths = {}, {module: ""}
        forward, inputs = self.create_args_for_root(type(module).forward, is_module=True)
        known: dict[str, Any] = {}
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            module.__dict__[name] = self.getattr(name, tensor, known)
        self.create_node("output", "output", (self.create_arg(forward(*inputs)),), {})
        return self.graph

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m not in self._followed and (is_kept(m) or is_opaque(m))

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
        """Trace as usual; note which node is the result of a transparent module."""
        if self.submodule_paths is not None and m not in self.submodule_paths and not m.state_dict():
            return forward(*args, **kwargs)  # made while running, for example nn.ReLU()(x)
        path = self.path_of_module(m)
        last = next(reversed(self.graph.nodes))
        try:
            result = super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed_in = self.failed_in or path
            raise
        if isinstance(m, TRANSPARENT) and isinstance(result, fx.Proxy) and result.node > last:
            self.names[result.node] = path
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
