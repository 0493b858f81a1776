"""Calls: the operators of an exported program, and which call of which module each of them belongs to."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxcompress.graph.module_kinds import TRANSPARENT, is_kept
from fxcompress.graph.tracing.norms import is_plain

ROOT = "model"  # the name of the model in the module that is exported
_CHECKS = ("_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range", "sym_constrain_range_for_size")
_LINE = re.compile(r'File "([^<].*)", line (\d+), in .*\n\s*(.*)')
_NOT_THE_USERS = tuple(f"{Path(file).parent}{os.sep}" for file in (__file__, torch.__file__))


def under_root(name: str) -> str:
    """Return a qualified name as it is in the model."""
    return name.removeprefix(ROOT).removeprefix(".")


def operators(gm: fx.GraphModule) -> Iterator[fx.Node]:
    """Yield the operators of a program in order, with those of its regions in their places."""
    for node in gm.graph.nodes:
        if node.op != "call_function" or repeats_a_guard(node):
            continue
        if _is_region(node):
            for argument in node.args:
                inner = getattr(gm, str(argument.target), None) if isinstance(argument, fx.Node) else None
                if isinstance(inner, fx.GraphModule):
                    yield from operators(inner)
        elif not (node.args and _is_region(node.args[0])):  # which only reads a result of a region
            yield node


def _is_region(node: object) -> bool:
    return isinstance(node, fx.Node) and isinstance(node.target, torch._ops.HigherOrderOperator)


def operator_name(node: fx.Node) -> str:
    """Return the name of the operator or function that a node calls."""
    target = getattr(node.target, "overloadpacket", node.target)
    return getattr(target, "__name__", str(target))


def repeats_a_guard(node: fx.Node) -> bool:
    """Return whether a node only checks again what was checked, or known, when the program was exported."""
    return operator_name(node) in _CHECKS


def line_of(node: fx.Node) -> tuple[str, str]:
    """Return the line of the model's code that computes a node, as `file:line` and its text, or ''."""
    traced = _LINE.findall(node.meta.get("stack_trace") or "")
    lines = [line for line in traced if not line[0].startswith(_NOT_THE_USERS)]
    return (f"{lines[-1][0]}:{lines[-1][1]}", lines[-1][2]) if lines else ("", "")


def enclosing(node: fx.Node) -> list[str]:
    """Return the paths of the modules in whose forward a node is computed, the outermost first."""
    return [under_root(path) for _, path in _stack(node)]


class Calls:
    """The calls of the modules of `model`, each by the nodes that it consists of."""

    def __init__(self, model: nn.Module, nodes: Iterable[fx.Node]) -> None:
        self._model = model
        self._nodes: dict[str, list[fx.Node]] = {}
        for node in nodes:
            for call, _ in _stack(node)[-1:]:
                self._nodes.setdefault(call, []).append(node)
        self._kept = {call: nodes for call, nodes in self._nodes.items() if self._is_kept(nodes)}

    def scope(self, node: fx.Node) -> str:
        """Return the path of the module whose forward computes a node."""
        stack = _stack(node)
        return under_root(stack[-1][1]) if stack else ""

    def kept(self, node: fx.Node) -> list[fx.Node]:
        """Return all nodes of the call of a module that stays a module, if `node` is one of them."""
        stack = _stack(node)
        return self._kept.get(stack[-1][0], []) if stack else []

    def result(self, node: fx.Node) -> str | None:
        """Return the path of the transparent module whose result a node is, None for any other node."""
        stack = _stack(node)
        if not stack or self._nodes[stack[-1][0]][-1] is not node:
            return None
        path = under_root(stack[-1][1])
        return path if isinstance(self._model.get_submodule(path), TRANSPARENT) else None

    def _is_kept(self, nodes: list[fx.Node]) -> bool:
        path = self.scope(nodes[0])
        if not path or not _stays_a_module(self._model.get_submodule(path)):
            return False
        return all(user in nodes for node in nodes[:-1] for user in node.users)


def _stays_a_module(module: nn.Module) -> bool:
    if isinstance(module, nn.Embedding):
        return module.max_norm is not None  # changes its weight in forward
    if isinstance(module, _BatchNorm):
        return is_plain(module)  # any other is looked into
    return is_kept(module) or isinstance(module, nn.RReLU)


def _stack(node: fx.Node) -> list[tuple[str, str]]:
    """Return the names of the calls in which a node is computed, with the paths of their modules."""
    stack = node.meta.get("nn_module_stack") or {}
    return [(call, path) for call, (path, _) in stack.items() if path == ROOT or path.startswith(f"{ROOT}.")]
