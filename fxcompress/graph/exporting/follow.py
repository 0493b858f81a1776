"""What follows the mode during export: functions that take `self.training`, and lines that branch on it."""

import ast
import functools
import linecache
import re
import sys
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from fxcompress.graph.exporting.calls import enclosing, operator_name
from fxcompress.graph.exporting.recurrent import operator_for
from fxcompress.graph.mode import Mode, eval_mode
from fxcompress.graph.source import line_of, outside_torch

_FX = f"{Path(torch.fx.__file__).parent}/"
_DROPPING = (
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout),
    F.multi_head_attention_forward,
)
_KNOWN = (
    *("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"),
    *("batch_norm", "scaled_dot_product_attention"),
)
# Modules of torch that ask for their mode only to choose the fused operator, which export switches off.
_CHECKING = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer)
# Methods that may give their very input back: the program could not tell one from the other.
_CASTS = {
    *(Tensor.to, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16, Tensor.type, Tensor.type_as),
    *(Tensor.cpu, Tensor.cuda, Tensor.contiguous),
}


class Following(TorchFunctionMode):
    """Note the calls of functions that are given the mode, and call them without.

    `asked` holds by the path of a module the lines that branch on its mode, by `file:line`. What drops out does so
    in train mode, as torch gives its very input back in eval mode: the program could not tell one from the other.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[str, dict[str, str]] = {}
        self.with_rate: set[str] = set()  # paths of the modules that choose a rate of dropout by their mode
        self.is_partial = False  # whether only the modules of torch were given a Mode
        self._calls: dict[str, list[bool]] = {}  # of what drops out or normalizes, whether the mode was given

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call as torch does, with a bool in the place of the mode."""
        func = operator_for(func, args) or func
        kwargs = kwargs or {}
        if func in _CASTS and args:
            args = (torch.ops.aten.alias(args[0]), *args[1:])
        modes = [value for value in (*args, *kwargs.values()) if isinstance(value, Mode)]
        is_known = func in _DROPPING or func is F.batch_norm
        if is_known:
            self._calls.setdefault(_place_of_forward(sys._getframe(1)), []).append(bool(modes))
        if not modes:
            return func(*args, **kwargs)
        training = func in _DROPPING
        if not is_known:
            _note(modes[0], outside_torch(sys._getframe(1)))
            training = modes[0].branch
        args = tuple(training if isinstance(value, Mode) else value for value in args)
        kwargs = {name: training if isinstance(value, Mode) else value for name, value in kwargs.items()}
        return func(*args, **kwargs)

    def place_of(self, node: fx.Node) -> str:
        """Return the line in a forward that computes a node, '' where none is known."""
        return ["", *re.findall(r'File ".*", line \d+,', node.meta.get("stack_trace") or "")][-1]

    def followed(self, nodes: Iterable[fx.Node]) -> set[fx.Node]:
        """Return the operators of a program that drop out or normalize, and were computed by calls with the mode."""
        lines: dict[str, list[fx.Node]] = {}
        for node in nodes:
            if operator_name(node).removesuffix("_") in _KNOWN:
                lines.setdefault(self.place_of(node), []).append(node)
        found: set[fx.Node] = set()
        for place, own in lines.items():
            given = self._calls.get(place, [])
            if len(given) != len(own):  # one of the calls was no operator, or several
                given = [any(given)] * len(own)
            found.update(node for node, follows in zip(own, given, strict=True) if follows)
        return found

    def has_other_randomness(self, nodes: Iterable[fx.Node]) -> bool:
        """Return whether a rate of dropout was chosen for code that drops out by itself, with random numbers."""
        random = (
            node
            for node in nodes
            if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
            and operator_name(node).removesuffix("_") not in _KNOWN
        )
        return any(not self.with_rate.isdisjoint(enclosing(node)) for node in random)

    def asking(self, without: set[str]) -> dict[str, dict[str, str]]:
        """Return the lines that branch on the mode of a module other than those `without`, by its path."""
        return {path: lines for path, lines in self.asked.items() if lines and path not in without}


class ModeOrRate(Mode):
    """The mode of the module `path`, which is true where the code chooses between a rate of dropout and none."""

    path: str
    with_rate: set[str] | None

    def __bool__(self) -> bool:
        frame = sys._getframe(1)
        if self.with_rate is not None and frame.f_lineno in _lines_of_rates(frame.f_code.co_filename):
            self.with_rate.add(self.path)
            return True
        _note(self, frame)
        return self.branch


def _note(mode: Mode, frame: FrameType) -> None:
    place, line = line_of(frame)
    mode.asked[place] = line


@contextmanager
def followed_mode(
    model: nn.Module, in_train: Container[str] = (), *, of_all: bool = True, rates: bool = True
) -> Iterator[Following]:
    """Put a Mode in the place of `training` in each module, and note what follows it while the model runs.

    Branches on it are taken as in train mode in the modules whose paths are `in_train`, else as in eval mode. If not
    `of_all`, this is done in the modules of torch alone. `rates` tells whether the mode may be true where a rate of
    dropout is chosen.
    """
    following = Following()
    following.is_partial = not of_all
    with eval_mode(model), following:
        for path, module in model.named_modules():
            if isinstance(module, nn.RNNBase):  # gives it to a function in C, which takes nothing but a bool
                continue
            if of_all or type(module).forward.__module__.startswith("torch.nn"):
                asked = {} if isinstance(module, _CHECKING) else following.asked.setdefault(path, {})
                mode = ModeOrRate(asked, path in in_train)
                mode.path, mode.with_rate = path, following.with_rate if rates else None
                module.training = mode
        yield following


@functools.cache
def _lines_of_rates(file: str) -> frozenset[int]:
    """Return the lines of a file with a choice such as `self.dropout if self.training else 0.0`."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return frozenset()
    choices = [node.test for node in ast.walk(tree) if isinstance(node, ast.IfExp) and _is_rate(node)]
    return frozenset(line for test in choices for line in range(test.lineno, (test.end_lineno or test.lineno) + 1))


def _is_rate(choice: ast.IfExp) -> bool:
    is_negated = isinstance(choice.test, ast.UnaryOp) and isinstance(choice.test.op, ast.Not)
    in_eval, in_train = (choice.body, choice.orelse) if is_negated else (choice.orelse, choice.body)
    mode = choice.test.operand if is_negated else choice.test  # type: ignore[attr-defined]
    asks = ast.unparse(mode).endswith("training")
    return asks and isinstance(in_eval, ast.Constant) and in_eval.value == 0 and "drop" in ast.unparse(in_train)


def _place_of_forward(frame: FrameType) -> str:
    """Return the innermost line in a forward as the stack traces of torch.export have it, which hold no others."""
    while (
        frame.f_code.co_name != "forward" or frame.f_code.co_filename.startswith(_FX)
    ) and frame.f_back is not None:
        frame = frame.f_back
    return f'File "{frame.f_code.co_filename}", line {frame.f_lineno},'
