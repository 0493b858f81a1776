"""What a way of tracing gives: the operators of a model, and from which of its modules each one comes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from fxcompress.graph.operators.calls import operator_of


@dataclass(frozen=True)
class Traced:
    """The graph of a module, with parameters and kept modules under their names in it.

    `scopes` holds the path of the module whose forward computes a node ("" for the traced module itself), and `names`
    that of the module whose result a node is. `plain` are the nodes that are not tensors. `asked` are the lines of
    the model's own code that do something else in train mode, by `file:line`. `made` are modules that the model does
    not have, which the graph calls, by the target of their calls.
    """

    graph: fx.Graph
    scopes: dict[fx.Node, str]
    names: dict[fx.Node, str]
    plain: set[fx.Node]
    asked: dict[str, str]
    made: dict[str, nn.Module] = field(default_factory=dict)

    def call_made(self, node: fx.Node, module: nn.Module) -> None:
        """Let a node call a module that the model does not have."""
        target = f"made.{node.name}"
        self.made[target] = module
        node.op, node.target = "call_module", target

    def module_of(self, model: nn.Module, node: fx.Node) -> nn.Module | None:
        """Return the module that a `call_module` node calls, None for any other node."""
        if node.op != "call_module":
            return None
        made = self.made.get(str(node.target))
        return model.get_submodule(str(node.target)) if made is None else made


def place(traced: Traced, path: str, graph: fx.Graph, owner: nn.Module, taken: dict[str, int]) -> None:
    """Append the traced graph of the module `path` of `owner` to a graph, with all names seen from `owner`.

    A node has the name of the module whose result it is, or else the path of the module that computes it and the
    operator's name, so that names do not depend on the way in which the model was traced. A module that is in several
    places of the model has the path of the first. `taken` counts how often each name is in the graph already.
    """
    first = _first_paths(owner)
    new: dict[fx.Node, fx.Node] = {}
    for node in traced.graph.nodes:
        made = traced.made.get(str(node.target)) if node.op == "call_module" else None
        target = node.target
        if made is None and node.op in ("get_attr", "call_module"):
            target = _qualified(join(path, str(target)), first)
        name = "_".join(_parts(traced, node, path, first))
        name = _free(name if name != "self" else "self_", taken)  # `self` is the graph's own
        if made is not None:
            target = name = _free_attribute(owner, name)
            owner.add_module(name, made)
        args, kwargs = fx.map_arg((node.args, node.kwargs), new.__getitem__)
        new[node] = graph.create_node(node.op, target, args, kwargs, name)


def join(path: str, name: str) -> str:
    """Return the qualified name of a part of the module `path`."""
    return f"{path}.{name}" if path and name else path or name


def _first_paths(model: nn.Module) -> dict[str, str]:
    first: dict[nn.Module, str] = {}
    return {path: first.setdefault(module, path) for path, module in model.named_modules(remove_duplicate=False)}


def _qualified(name: str, first: Mapping[str, str]) -> str:
    """Return the name of a module, parameter or buffer under the first path of its module."""
    path, _, leaf = name.rpartition(".")
    return first.get(name) or join(first.get(path, path), leaf)


def _parts(traced: Traced, node: fx.Node, path: str, first: Mapping[str, str]) -> list[str]:
    if node.op in ("get_attr", "call_module") and str(node.target) not in traced.made:
        return _qualified(join(path, str(node.target)), first).split(".")
    if node in traced.names and join(path, traced.names[node]):
        return _qualified(join(path, traced.names[node]), first).split(".")
    scope = _qualified(join(path, traced.scopes.get(node, "")), first)
    return [*(scope.split(".") if scope else ()), _short_name(traced, node)]


def _short_name(traced: Traced, node: fx.Node) -> str:
    row, target = operator_of(node), node.target
    if row is not None:
        return row.kind
    if node.op == "call_method" and re.fullmatch(r"\w*[^_]_", str(target)):  # changes a buffer, in place
        return str(target)
    if callable(target):
        target = getattr(target, "_overloadpacket", target).__name__
    if node.op == "call_module":
        module: Any = traced.made[str(target)]
        target = getattr(module, "function", type(module)).__name__.lower()
    return str(target).strip("_*")


def _free(name: str, taken: dict[str, int]) -> str:
    """Return a name that no node has: `add`, `add_1`, `add_2`, ..."""
    number = taken.get(name, 0)
    free = name if not number else f"{name}_{number}"
    while free in taken and number:
        number += 1
        free = f"{name}_{number}"
    taken[name] = number + 1
    taken.setdefault(free, 1)
    return free


def _free_attribute(owner: nn.Module, name: str) -> str:
    while hasattr(owner, name):
        name += "_"
    return name
