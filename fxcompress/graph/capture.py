"""Capture: a private copy of a model as a graph in normal form, checked against the original."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import torch
from torch import fx, nn
from torch.nn.modules.lazy import LazyModuleMixin

from fxcompress.errors import CaptureError
from fxcompress.graph.coverage import Reasons, Tried, cover, coverage, set_coverage
from fxcompress.graph.exporting.export import export
from fxcompress.graph.inputs import Arguments, apart, as_arguments, fixed_arguments
from fxcompress.graph.islands import islands
from fxcompress.graph.module import CapturedModule, module_around
from fxcompress.graph.module_kinds import is_kept
from fxcompress.graph.normalize import normalize
from fxcompress.graph.original import Original
from fxcompress.graph.regions import Islands
from fxcompress.graph.shell import private_copy, shell
from fxcompress.graph.tracing.symbolic import trace
from fxcompress.policies.policy import Way

_WAYS: tuple[Way, ...] = get_args(Way)[1:]


def capture(model: nn.Module, example_inputs: Any = None, *, way: Way = "auto", copy: bool = True) -> fx.GraphModule:
    """Return a private copy of `model` as a graph in which every weight is an edge; `model` is not changed.

    Convolutions, linear layers and embeddings become function calls on `get_attr` nodes under the original qualified
    names of the parameters; batch norm and dropout stay modules, so that train and eval mode work. With
    `example_inputs` (one tensor, a tuple of positional arguments or a dict of keyword arguments) the graph is run
    beside the original.

    `way` is `symbolic` (torch.fx), `export` (torch.export), `islands` (the model's own Python runs, its largest
    traceable modules become graphs) or `auto`, which tries them in this order until one sees all
    multiply-accumulates and freezes neither mode nor size, and else takes the one that sees most; where they see the
    same, one that takes all sizes, then a whole graph, then one that follows the mode. `coverage` tells what it saw.
    Without `copy` the result shares the parameters and buffers of `model`. A captured graph is copied as it is.

    An argument that is None, a bool or a text in that call (or by default) chooses a path through the model: the
    graph holds that path, and refuses a call that asks for another.
    Raises CaptureError where the model cannot be traced, or where the two differ. Warns where the model's own code
    does something else in train mode, which the graph does not.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile wraps the module
    _refuse_others(model, way)
    _refuse_other_way(model, way)
    private = private_copy(model) if copy else shell(model)
    if isinstance(private, CapturedModule | Islands):
        return private
    original = None if example_inputs is None else Original(private, apart(as_arguments(example_inputs)))
    _refuse_lazy(private)
    found = _best(private, original) if way == "auto" else _attempt(way, private, original)
    if found.asked:
        lines = ", ".join(f"{place} ({line})" for place, line in list(found.asked.items())[:3])
        lines += f" and {len(found.asked) - 3} more" if len(found.asked) > 3 else ""
        name = type(model).__name__
        warnings.warn(f"{name} asks for its mode at {lines}: its graph holds what eval mode does", stacklevel=2)
    return found.gm


def _refuse_others(model: Any, way: str) -> None:
    if way not in get_args(Way):
        raise CaptureError(f"capture knows no way {way!r}; write one of {', '.join(get_args(Way))}")
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        kind = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise CaptureError(f"a model is a torch.nn.Module in Python, not {kind}")
    if is_kept(model):
        raise CaptureError(f"{type(model).__name__} alone has nothing to compress; put it into nn.Sequential(model)")
    if "forward" in vars(model):
        raise CaptureError(
            f"{type(model).__name__} has a forward that was set on this one object; define it in a class of its own"
        )


def _refuse_other_way(model: nn.Module, way: Way) -> None:
    """Raise CaptureError for a captured graph that was captured in another way than the one asked for."""
    if not isinstance(model, CapturedModule | Islands) or way == "auto":
        return
    if (taken := coverage(model).way) != way:
        raise CaptureError(
            f"{type(model).__name__} was captured by {taken} and stays so; capture the original model by {way}, or "
            "leave out the way"
        )


def _refuse_lazy(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():  # type: ignore[misc]
            raise CaptureError(
                f"the shapes of {path!r} ({type(module).__name__}) come from its first run: pass example_inputs=..."
            )


def _refuse_extra_state(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise CaptureError(f"{path or 'the model'} has an extra state, which a graph cannot keep")


class _Attempt(NamedTuple):
    """A capture, the lines that do something else in train mode, by `file:line`, and an axis that it holds."""

    gm: fx.GraphModule
    asked: Mapping[str, str]
    held: str = ""

    @property
    def share(self) -> float:
        """The share of the multiply-accumulates that it sees; islands without a region see nothing."""
        return coverage(self.gm).share if len(self.gm.graph.nodes) else 0.0

    @property
    def frozen(self) -> str:
        """Say what a capture freezes that the model does not, "" for nothing."""
        said = [f"does what eval mode does at {place} ({line})" for place, line in list(self.asked.items())[:1]]
        return " and ".join(said + [f"takes one size alone of {axis}" for axis in (self.held,) if axis])


def _best(private: nn.Module, original: Original | None) -> _Attempt:
    """Return the capture that ranks first; ways are tried until one sees all and freezes nothing."""
    if original is None:  # the other ways run the model
        return _without_a_run(private)
    found: list[_Attempt] = []
    tried: list[Tried] = []
    for way in _WAYS:
        if way == "islands" and any(one.share == 1 and not one.held for one in found):
            break  # it would not rank above
        try:
            attempt = _attempt(way, private, original)
        except Exception as error:  # torch's own, too: another way may do without what failed
            tried.append(Tried(way, str(error) if isinstance(error, CaptureError) else repr(error)))
            continue
        attempt = attempt._replace(held=original.held(attempt.gm))
        found.append(attempt)
        if attempt.share == 1 and not attempt.frozen:
            break
        reasons = [f"sees {attempt.share:.1%} of the multiply-accumulates", attempt.frozen]
        tried.append(Tried(way, ", but ".join(filter(None, reasons))))
    if not found:
        raise CaptureError("; ".join(f"{one.way}: {one.reason}" for one in tried))
    best = max(found, key=_rank)
    seen = coverage(best.gm)
    set_coverage(best.gm, replace(seen, tried=tuple(one for one in tried if one.way != seen.way)))
    return best


def _without_a_run(private: nn.Module) -> _Attempt:
    """Capture by the one way that does not run the model."""
    try:
        return _attempt("symbolic", private, None)
    except CaptureError as error:
        if error.__cause__ is None:  # no code that could not be followed: the other ways may refuse it, too
            raise
        message = f"{error}; pass example_inputs=... to have the other ways (export, islands) tried"
        raise CaptureError(message, place=error.place, line=error.line) from error


def _rank(attempt: _Attempt) -> tuple[float, bool, bool, bool]:
    """Order captures: what sees more, takes all sizes, is one graph that engines can run, follows the mode."""
    is_whole = not isinstance(attempt.gm, Islands)
    return attempt.share, not attempt.held, is_whole, not attempt.asked


def _attempt(way: Way, private: nn.Module, original: Original | None) -> _Attempt:
    """Capture a model in one way and check the result, if there is something to check it with."""
    model, name = shell(private), type(private).__name__
    arguments = Arguments() if original is None else original.arguments
    reasons: Reasons = {}
    if original is None and way != "symbolic":
        raise CaptureError(f"capturing {name} by {way} runs it: pass example_inputs=...")
    gm: fx.GraphModule
    if way == "islands":
        with torch.set_grad_enabled(original is not None and original.with_gradients):
            gm, asked, reasons = islands(model, arguments)
    else:
        _refuse_extra_state(model)
        traced = export(model, arguments) if way == "export" else trace(model, fixed_arguments(model, arguments))
        normalize(traced, model)
        gm, asked = module_around(traced, model, name), traced.asked
    if original is not None:
        original.check(gm)
    set_coverage(gm, cover(gm, way, private, None if original is None else original.macs, reasons))
    return _Attempt(gm, asked)
