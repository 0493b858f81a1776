"""Capture: a private copy of a model as a graph in normal form, checked against the original."""

import copy
import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from fxcompress.errors import CaptureError
from fxcompress.graph.compare import refuse_difference, run
from fxcompress.graph.inputs import Arguments, as_arguments
from fxcompress.graph.mode import eval_mode, observed_mode, takes_only_bool
from fxcompress.graph.module import CapturedModule, module_around
from fxcompress.graph.normalize import normalize
from fxcompress.graph.symbolic import trace, user_line


def capture(model: nn.Module, example_inputs: Any = None) -> fx.GraphModule:
    """Return a private copy of `model` as a graph in which every weight is an edge; `model` is not changed.

    Convolutions, linear layers and embeddings become function calls on `get_attr` nodes under the original qualified
    names of the parameters; batch norm and dropout stay modules, so that train and eval mode work. With
    `example_inputs` (one tensor, a tuple of positional arguments or a dict of keyword arguments) the graph is run
    beside the original. A captured graph is copied as it is.

    An argument that is None, a bool or a text in that call (or by default) chooses a path through the model: the
    graph holds that path, and refuses a call that asks for another.
    Raises CaptureError where the model cannot be traced, or where the two differ. Warns where the model's own code
    does something else in train mode, which the graph does not.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile wraps the module
    private, name = _copy(model), type(model).__name__
    if isinstance(private, CapturedModule):
        return private
    arguments = None if example_inputs is None else as_arguments(example_inputs)
    with eval_mode(private):
        expected = arguments and _run(private, arguments, name)
    fixed = _fixed_arguments(private, arguments)
    try:
        with observed_mode(private) as asked:
            graph = trace(private, fixed)
    except CaptureError as error:
        if not takes_only_bool(error.__cause__):
            raise
        private, asked = _copy(model), dict([user_line(error.__cause__)])
        with eval_mode(private):
            graph = trace(private, fixed)
    gm = module_around(graph, private, name)
    normalize(gm)
    if asked:
        lines = ", ".join(f"{place} ({line})" for place, line in list(asked.items())[:3])
        lines += f" and {len(asked) - 3} more" if len(asked) > 3 else ""
        warnings.warn(f"{name} asks for its mode at {lines}: its graph holds what eval mode does", stacklevel=2)
    if arguments is not None:
        with eval_mode(gm):
            refuse_difference(expected, _run(gm, arguments, f"the graph of {name}"), name)
    return gm


def _copy(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise CaptureError(f"a model is a torch.nn.Module in Python, not {_kind(model)}")
    if "forward" in vars(model):
        raise CaptureError(
            f"{type(model).__name__} has a forward that was set on this one object; define it in a class of its own"
        )
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise CaptureError(f"{type(model).__name__} cannot be copied: {error}") from error


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def _run(module: nn.Module, arguments: Arguments, name: str) -> Any:
    try:
        return run(module, arguments)
    except Exception as error:
        raise CaptureError(f"{name} does not run on the example inputs: {error}") from error


def _fixed_arguments(model: nn.Module, arguments: Arguments | None) -> Mapping[str, Any]:
    """Return the arguments that choose a path through the model, with their values in the call or by default."""
    signature = inspect.signature(type(model).forward)
    try:
        call = signature.bind_partial(model, *(arguments or Arguments()).args, **(arguments or Arguments()).kwargs)
    except TypeError:  # a decorator shows another signature than the one that is called
        call = signature.bind_partial(model)
    call.apply_defaults()
    return {name: value for name, value in call.arguments.items() if value is None or isinstance(value, bool | str)}
