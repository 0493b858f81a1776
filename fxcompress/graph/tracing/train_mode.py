"""Train mode: a graph of eval mode made to follow it, where the model only drops out besides, or does the same."""

import random
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils import _pytree as pytree

from fxcompress.graph.mode import DROPOUT, Mode
from fxcompress.graph.traced import Traced

_PLAIN = (bool, int, float, str, type(None))


class InMode(NamedTuple):
    """A model as it was traced in one mode: the module with the graph's constants, and the graph."""

    model: nn.Module
    traced: Traced


def follow_train_mode(in_eval: InMode, trace_in_train: Callable[[], InMode]) -> None:
    """Let a graph drop out where the model does so in train mode alone; forget the lines that asked for the mode.

    The model is traced once more with branches taken as in train mode. Both graphs have to be one but for dropout,
    and the second must not depend on chance or leave anything behind: else the graph stays as it is.
    """
    if not in_eval.traced.asked:
        return
    before = _random_states()
    try:
        in_train = trace_in_train()
    except Exception:  # what only train mode computes need not be a graph
        return
    if _random_states() != before:  # such as a layer that is left out by chance
        return
    aligned = _Aligned(in_eval, in_train)
    if aligned.succeeds():
        aligned.add_dropouts()
        in_eval.traced.asked.clear()


def plain_state(model: nn.Module) -> dict[str, Any]:
    """Return the numbers and texts that modules hold, such as a count of steps, and of all else kind and length."""
    return {
        f"{path}.{name}": value if isinstance(value, _PLAIN) else (type(value), len(value) if _is_sized(value) else 0)
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if name != "training" and not name.startswith("_tensor_constant")  # which torch.fx puts there
    }


def _is_sized(value: Any) -> bool:
    return isinstance(value, list | dict | set)


def _random_states() -> list[Any]:
    states: list[Any] = [torch.get_rng_state().tolist(), random.getstate()]
    if torch.cuda.is_initialized():
        states.append([state.tolist() for state in torch.cuda.get_rng_state_all()])
    if "numpy" in sys.modules:
        states.append(repr(sys.modules["numpy"].random.get_state(legacy=False)["state"]))
    return states


class _Aligned:
    """Two graphs node by node; `added` are the dropouts of the second that the first does not have.

    Each node of the second stands for a node of the first in eval mode; a dropout stands for its own input.
    """

    def __init__(self, in_eval: InMode, in_train: InMode) -> None:
        self.in_eval, self.in_train = in_eval, in_train
        self.stands_for: dict[fx.Node, fx.Node] = {}
        self.pairs: list[tuple[fx.Node, fx.Node]] = []
        self.added: list[tuple[fx.Node, fx.Node]] = []  # each with the node of the first graph that it comes before

    def succeeds(self) -> bool:
        """Return whether all nodes were found, in one order."""
        waiting = list(self.in_eval.traced.graph.nodes)
        for node in self.in_train.traced.graph.nodes:
            if waiting and self._computes(node, waiting[0]):
                self.stands_for[node] = waiting.pop(0)
                self.pairs.append((node, self.stands_for[node]))
            elif waiting and self._drops_out(node):
                self.stands_for[node] = self.stands_for[node.args[0]]
                self.added.append((node, waiting[0]))
            else:
                return False
        return not waiting

    def add_dropouts(self) -> None:
        """Write the dropouts into the first graph."""
        if not self.added:
            return
        following = dict(self.pairs)
        for node, before in self.added:
            following[node] = self._written(node, before, following)
        for node, own in self.pairs:
            own.args, own.kwargs = fx.map_arg((node.args, node.kwargs), following.__getitem__)

    def _written(self, node: fx.Node, before: fx.Node, following: dict[fx.Node, fx.Node]) -> fx.Node:
        traced, train = self.in_eval.traced, self.in_train.traced
        args, kwargs = fx.map_arg((node.args, node.kwargs), following.__getitem__)
        if node.op == "call_function":
            p = dict(zip(("input", "p"), args, strict=False)) | kwargs
            args, kwargs = (args[0], p.get("p", 0.5), Mode({})), {}
        with traced.graph.inserting_before(before):
            new = traced.graph.create_node(node.op, node.target, args, kwargs)
        if node.target in train.made:
            traced.call_made(new, train.made[str(node.target)])
        traced.scopes[new] = train.scopes.get(node, "")
        return new

    def _computes(self, node: fx.Node, own: fx.Node) -> bool:
        if node.op != own.op or not self._same_target(node, own):
            return False
        ours, theirs = (pytree.tree_flatten((one.args, one.kwargs)) for one in (own, node))
        leaves = [fx.map_arg(leaf, self.stands_for.__getitem__) for leaf in theirs[0]]
        return ours[1] == theirs[1] and all(map(_equal, ours[0], leaves))

    def _same_target(self, node: fx.Node, own: fx.Node) -> bool:
        if node.op == "get_attr":
            values = (_attribute(*one) for one in ((self.in_eval.model, own), (self.in_train.model, node)))
            return node.target == own.target and _equal_tensors(*values)
        made = [traced.made.get(str(one.target)) for traced, one in self._both(own, node)]
        return repr(made[0]) == repr(made[1]) and (made[0] is not None or node.target == own.target)

    def _both(self, own: fx.Node, node: fx.Node) -> tuple[tuple[Traced, fx.Node], tuple[Traced, fx.Node]]:
        return (self.in_eval.traced, own), (self.in_train.traced, node)

    def _drops_out(self, node: fx.Node) -> bool:
        """Return whether a node drops out in train mode, and gives its input as it is in eval mode."""
        if not node.args or not isinstance(node.args[0], fx.Node):
            return False
        module = self.in_train.traced.module_of(self.in_train.model, node)
        if module is not None:
            return isinstance(module, _DropoutNd) and not module.inplace and len(node.args) == 1 and not node.kwargs
        if node.op != "call_function" or node.target not in DROPOUT:
            return False
        given = dict(zip(("input", "p", "training", "inplace"), node.args, strict=False)) | node.kwargs
        mode = given.get("training", True)
        is_number = isinstance(given.get("p", 0.5), int | float)
        return is_number and not given.get("inplace", False) and (mode is True or isinstance(mode, Mode))


def _attribute(model: nn.Module, node: fx.Node) -> Any:
    path, _, leaf = str(node.target).rpartition(".")
    return getattr(model.get_submodule(path), leaf)


def _equal_tensors(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.is_meta or other.is_meta:
        return False
    return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return _equal_tensors(one, other)
    return type(one) is type(other) and bool(one == other)
