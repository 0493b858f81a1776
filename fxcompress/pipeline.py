"""The driver: from model and policy to plan, and from plan to the compressed model."""

import gc
from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any, NamedTuple

from torch import fx, nn

from fxcompress.errors import NotReadyError
from fxcompress.graph import capture as capture_model
from fxcompress.graph import verify
from fxcompress.graph.compare import restored
from fxcompress.graph.edit import tensor_of_quantizer
from fxcompress.graph.inputs import Examples, examples, rereadable
from fxcompress.graph.shapes import shapes
from fxcompress.measure.calibrate import calibrate
from fxcompress.measure.float_mode import float_mode
from fxcompress.measure.hessian import Loss
from fxcompress.measure.zeroq import synthesize
from fxcompress.nn import Choice
from fxcompress.passes import apply
from fxcompress.passes.apply import changed, select
from fxcompress.passes.resolve import take_active
from fxcompress.planning.decide import decide, refuse_missing_inputs
from fxcompress.planning.holder import hold
from fxcompress.planning.lock import Applied, lock
from fxcompress.planning.prices import float_prices
from fxcompress.policies import Plan, Policy, RuleStep, Step, read
from fxcompress.policies.policy import Way
from fxcompress.tune.run import prepare, tune

_MAKERS = {"zeroq": synthesize}

AnyPolicy = Policy | str | PathLike[str] | dict[str, Any]


def transform(
    model: nn.Module,
    policy: AnyPolicy,
    *,
    example_inputs: Any = None,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    capture: Way | None = None,
    cache: str | PathLike[str] | None = None,
    copy: bool = True,
) -> fx.GraphModule:
    """Return a compressed copy of `model` as the policy or plan says; `model` is not changed.

    `policy` is a preset's name, a file, a mapping, a Policy, or a Plan, which is applied without measuring again.
    `example_inputs` is one tensor, a tuple of positional arguments or a dict of keyword arguments; `data` is any
    iterable of such batches, with labels where the loss needs them, or None for what the policy's `data` makes;
    `loss(output, label)` gives a scalar. `capture` says how the model becomes a graph, in the place of the policy's
    word. `cache` is a folder in which tuning keeps what it has done, so that the same call goes on after a kill. The
    result is called, trained, moved and saved like the original, under the original parameter names. Without `copy`
    it takes over the parameters of `model`, which is of no use afterwards: the memory of a second model is saved (a
    search tries its options on a copy all the same).
    Raises PolicyError, CaptureError, PassError, InfeasibleError or NotReadyError, each naming the layer, line or key.
    """
    decided, data, gm, positional = _planned(model, policy, example_inputs, data, loss, capture, copy)
    if gm is None:
        gc.collect()  # a graph and its nodes hold each other: the plan's own would stay beside the one to come
        gm, (_, positional) = checked_capture(model, example_inputs, data, decided.capture, copy)
        with restored(gm.buffers()):
            if decided.tunes_on_data:
                data = _given_or_made(decided, gm, example_inputs, data)
            _fill(gm, decided, data, positional)
    tune(gm, decided.tune, data, positional, cache)
    return hold(gm, decided)


def rebuild(model: nn.Module, decided: Plan, *, example_inputs: Any = None) -> fx.GraphModule:
    """Return the compressed model that a plan gives as far as it needs no data: to be filled with a saved state."""
    gm, known = checked_capture(model, example_inputs, None, decided.capture)
    _fill(gm, decided, None, known.positional)
    return hold(gm, decided)


def _fill(gm: fx.GraphModule, decided: Plan, data: Iterable[Any] | None, positional: int | None) -> None:
    run(decided.aimed, gm)
    prepare(gm, decided.tune)
    calibrate(gm, data, positional)


def plan(
    model: nn.Module,
    policy: AnyPolicy,
    *,
    example_inputs: Any = None,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    capture: Way | None = None,
) -> Plan:
    """Return the policy with every decision made, what it costs and why; takes and raises what `transform` does."""
    return _planned(model, policy, example_inputs, data, loss, capture).plan


class _Planned(NamedTuple):
    """A plan, the data that it was made with, and the graph that already is what it says, where nothing was open."""

    plan: Plan
    data: Iterable[Any] | None
    gm: fx.GraphModule | None = None
    positional: int | None = None


def _planned(
    model: nn.Module,
    policy: AnyPolicy,
    example_inputs: Any,
    data: Iterable[Any] | None,
    loss: Loss | None,
    capture: Way | None,
    copy: bool = True,
) -> _Planned:
    wanted = read(policy)
    if capture is not None:
        wanted = wanted.model_copy(update={"capture": capture})
    data = rereadable(data)
    if isinstance(wanted, Plan):
        return _Planned(wanted, data)
    if wanted.search is not None:
        refuse_missing_inputs(wanted.search, () if data is None and wanted.data is not None else data, loss)
    gm, known = checked_capture(model, example_inputs, data, wanted.capture, copy or any(wanted.open_fields()))
    with restored(gm.buffers()):
        data = _given_or_made(wanted, gm, example_inputs, data)
        original = float_prices(gm, wanted.search, shapes(gm, known.inputs))
        applied = run(wanted.aimed, gm)
        prepare(gm, wanted.tune)
        ranges = calibrate(gm, data, known.positional)
        is_open = any(isinstance(module, Choice) for module in gm.modules())
        if wanted.search is None:
            take_active(gm)
        with float_mode(gm):  # a model on the meta device has no values to quantize
            flow = shapes(gm, known.inputs)
        search = wanted.search
        decision = decide(gm, search, original, flow, data, loss, known.positional) if search else None
        decided = lock(wanted, applied, ranges, gm, original, flow, decision)
    if wanted.data and decided.tunes_on_data:
        decided = decided.replaced(data=wanted.data)
    return _Planned(decided, data) if is_open else _Planned(decided, data, gm, known.positional)


def _given_or_made(
    policy: Policy, gm: fx.GraphModule, example_inputs: Any, data: Iterable[Any] | None
) -> Iterable[Any] | None:
    """Return the data, or what the policy says is to take its place: it is made from the graph as it was captured."""
    if data is not None or policy.data is None:
        return data
    if example_inputs is None:
        where = policy.data.at or "data"
        raise NotReadyError(
            f"{where}: {policy.data.name} makes data like the example inputs: pass example_inputs=..."
        )
    made: Iterable[Any] = policy.data.function(_MAKERS)(gm, example_inputs, **policy.data.arguments)
    return rereadable(made)


def checked_capture(
    model: nn.Module, example_inputs: Any, data: Iterable[Any] | None, way: Way = "auto", copy: bool = True
) -> tuple[fx.GraphModule, Examples]:
    """Capture the model and run the graph beside it, on the example inputs or else on a sample of the data."""
    known = examples(model, example_inputs, data)
    return capture_model(model, known.inputs, way=way, copy=copy), known


def run(steps: Sequence[Step], gm: fx.GraphModule) -> list[Applied]:
    """Apply steps in order, verifying the graph after each; return what each did."""
    applied = []
    for step in steps:
        matched = select(step, gm) if isinstance(step, RuleStep) else []
        before = {name for name, _ in gm.named_modules()}
        apply(step, gm)
        verify(gm)
        made = {tensor_of_quantizer(name) for name, _ in gm.named_modules() if name not in before}
        applied.append(Applied(changed(step, gm, matched), made))
    return applied
