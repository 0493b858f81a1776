"""Programs: a model through torch.export, with as many open axes as its code allows."""

import contextlib
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from fxcompress.errors import CaptureError
from fxcompress.graph.exporting.axes import Axes, batches, closed, lengths, repeated, repeats, tied
from fxcompress.graph.exporting.calls import operators
from fxcompress.graph.exporting.follow import Following, followed_mode
from fxcompress.graph.exporting.nesting import close_output, filled
from fxcompress.graph.exporting.signature import Inputs
from fxcompress.graph.exporting.sizes import dependent_axes, size_of, told_from_one
from fxcompress.graph.exporting.traceable import traceable
from fxcompress.graph.inputs import Arguments
from fxcompress.graph.mode import takes_only_bool
from fxcompress.graph.module_kinds import is_kept
from fxcompress.graph.shell import shell
from fxcompress.graph.source import failing_module, user_line
from fxcompress.graph.tracing.hooks import refuse_lost_hooks
from fxcompress.graph.tracing.train_mode import plain_state


class Program(NamedTuple):
    """An exported program, and what it does not tell.

    `returned` is what the model returned, with a Place for each output; the last outputs are the values of the
    buffers that the model `assigned` to. `following` noted what followed the mode, and sizes that are `not_one` have
    to be more, as the model's code does something else for one.
    """

    exported: ExportedProgram
    returned: Any
    assigned: list[str]
    following: Following
    not_one: set[sympy.Symbol]

    @property
    def inputs(self) -> list[fx.Node]:
        """The placeholders of the tensors that the program is called with."""
        names = set(self.exported.graph_signature.user_inputs)
        return [node for node in self.exported.graph.find_nodes(op="placeholder") if node.name in names]


class FailedError(Exception):
    """The model's code raised the error that is the cause of this one, in the module of the path `module`."""

    def __init__(self, module: str) -> None:
        super().__init__(module)
        self.module = module


class _Opened(nn.Module):
    """The model as a function of tensors that returns tensors."""

    def __init__(self, model: nn.Module, call: Arguments) -> None:
        super().__init__()
        self.model, self.call = model, call
        self.result = SimpleNamespace()  # what is set on a module itself during torch.export is taken back

    def forward(self, *tensors: Tensor) -> tuple[Any, ...]:
        """Call the model with the tensors in their places."""
        args, kwargs = filled(self.call, tensors)
        found: list[Any] = []
        before, state = dict(self.model.named_buffers()), plain_state(self.model)
        try:
            self.result.returned = close_output(self.model(*args, **kwargs), found)
            self.result.assigned = _assigned(before, dict(self.model.named_buffers()), found)
            self.result.left_state = plain_state(self.model) != state
        except CaptureError:
            raise
        except Exception as error:
            raise FailedError(failing_module(error, self.model)) from error
        return tuple(found)


def _assigned(before: Mapping[str, Tensor], after: Mapping[str, Tensor], found: list[Any]) -> list[str]:
    """Return the names of the buffers that the model assigned to, and append their values to `found`."""
    names = [name for name, buffer in after.items() if buffer is not before.get(name)]
    for name in names:
        old, new = before.get(name), after[name]
        if old is None or str(old.shape) != str(new.shape) or old.dtype != new.dtype:
            raise CaptureError(f"forward assigns to the buffer {name!r} a value of another size or dtype")
        found.append(new)
    return names


def widest_program(model: nn.Module, inputs: Inputs, in_train: frozenset[str] = frozenset()) -> Program:
    """Export a model with all axes open that are batches or lengths; else with open batches; else with none.

    Branches on the mode of modules whose paths are `in_train` are taken as in train mode.
    Raises FailedError where the model's code cannot be followed, and what torch.export raises on its own account.
    """
    if program := _checked(model, inputs, lengths(inputs.tensors), in_train):
        return program
    least = fixed_program(model, inputs, in_train)  # an error of this one is the reason
    return _checked(model, inputs, batches(inputs.tensors), in_train) or least


def fixed_program(model: nn.Module, inputs: Inputs, in_train: frozenset[str] = frozenset()) -> Program:
    """Export a model for inputs of the very sizes that are given, which takes the least time."""
    return _program(model, inputs, [{} for _ in inputs.tensors], in_train)


def _checked(model: nn.Module, inputs: Inputs, axes: Axes, in_train: frozenset[str]) -> Program | None:
    """Export with open axes, if the graph can check how their sizes depend on each other; else tie or close some."""
    try:
        program = _program(model, inputs, axes, in_train)
        if _takes_one_for_more(program, inputs, axes):
            return None
        if not any(dependent := dependent_axes(program.inputs)):
            return program
    except CaptureError:
        raise
    except Exception:  # may come from open axes
        return None
    for fewer in (tied(axes, dependent, inputs.tensors), closed(axes, dependent)):
        with contextlib.suppress(Exception):
            program = _program(model, inputs, fewer, in_train)
            if not any(dependent_axes(program.inputs)) and not _takes_one_for_more(program, inputs, fewer):
                return program
    return None


def _takes_one_for_more(program: Program, inputs: Inputs, axes: Axes) -> bool:
    """Return whether a batch of one was repeated, and the model's code does something else for more than one."""
    placed = zip(program.inputs, axes, inputs.tensors, strict=True)
    sizes = [size_of(node.meta["val"].shape[0]) for node, one, tensor in placed if repeats(tensor, one)]
    return any(isinstance(size, int) or size.free_symbols & program.not_one for size in sizes)


def _program(model: nn.Module, inputs: Inputs, axes: Axes, in_train: frozenset[str]) -> Program:
    try:
        program = _run(model, inputs, axes, in_train)
    except FailedError as failed:
        if not takes_only_bool(failed.__cause__):
            raise
        program = _run(model, inputs, axes, in_train, of_all=False)
        program.following.asked[""] = dict([user_line(failed.__cause__)])
    if program.following.has_other_randomness(operators(program.exported.graph_module)):
        return _run(model, inputs, axes, in_train, rates=False)
    return program


def _run(model: nn.Module, inputs: Inputs, axes: Axes, in_train: frozenset[str], **modes: bool) -> Program:
    tensors = tuple(repeated(tensor, one) for tensor, one in zip(inputs.tensors, axes, strict=True))
    opened = _Opened(shell(model), inputs.call)
    refuse_lost_hooks(opened.model, lambda module, path: is_kept(module))
    mode = followed_mode(opened.model, in_train, **modes)
    with torch.enable_grad(), traceable(), told_from_one() as not_one, mode as following:
        exported = torch.export.export(opened, tensors, dynamic_shapes=(tuple(axes),), strict=False)
    if in_train and opened.result.left_state:
        raise CaptureError("train mode changes what the next call computes")
    return Program(exported, opened.result.returned, opened.result.assigned, following, not_one)
