"""Calibration: gives every quantizer its range, weights from themselves and activations from data."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from fxcompress.errors import NotReadyError
from fxcompress.graph import layers
from fxcompress.graph.edit import constant_value, is_constant, module_of, tensor_under
from fxcompress.graph.inputs import batches
from fxcompress.measure.float_mode import float_mode
from fxcompress.measure.observers import OBSERVERS, Observer
from fxcompress.measure.progress import progress
from fxcompress.nn import Choice, Quantizer

_ROWS = 1024  # channels of a weight observed at a time: what an observer keeps for each adds up

Ranges = dict[str, tuple[float, float]]


class _Waiting(NamedTuple):
    """A node whose quantizers need a range (several where bits are open).

    `consumer` is the first layer that its tensor reaches; `observer` makes what is to find the range.
    """

    node: fx.Node
    quantizers: tuple[Quantizer, ...]
    consumer: str
    observer: Callable[[], Observer]


def calibrate(gm: fx.GraphModule, data: Iterable[Any] | None, positional: int | None = None) -> Ranges:
    """Set the range of each quantizer that has none yet, with the observer that its rule names.

    Weights need no data. Activations are observed over all batches of `data` with every quantizer off.
    Returns the ranges of activations by tensor name.
    Raises NotReadyError when data is needed and missing or empty, or holds NaN or infinity (names batch and layer).
    """
    consumers = _consumers(gm)
    weights: list[_Waiting] = []
    activations: list[_Waiting] = []
    for node in gm.graph.nodes:
        found = _waiting(gm, node, consumers)
        if found is not None:
            (weights if is_constant(gm, node) else activations).append(found)
    known: Ranges = {}
    with float_mode(gm), torch.no_grad():
        for found in weights:
            _set_ranges_of_weight(gm, found)
        observers = _observe(gm, activations, data, positional) if activations else []
        for found, observer in zip(activations, observers, strict=True):
            low, high = observer.range()
            for quantizer in found.quantizers:
                quantizer.set_range(low, high)
            known[tensor_under(gm, found.node).name] = low.item(), high.item()
    return known


def _waiting(gm: fx.GraphModule, node: fx.Node, consumers: dict[fx.Node, str]) -> _Waiting | None:
    module = module_of(gm, node)
    options = module.options.values() if isinstance(module, Choice) else [module]
    quantizers = tuple(
        one for one in options if isinstance(one, Quantizer) and not one.ready and one.observer is not None
    )
    if not quantizers:
        return None
    reference: Any = quantizers[0].observer
    function = reference.function(OBSERVERS)
    return _Waiting(node, quantizers, consumers.get(node, node.name), lambda: function(**reference.args))


def _set_ranges_of_weight(gm: fx.GraphModule, found: _Waiting) -> None:
    weight = constant_value(gm, found.node.args[0])
    if weight.is_meta:  # a model without values is planned, not run
        return
    if not weight.is_floating_point():
        raise NotReadyError(
            f"the weight of {found.consumer!r} is {weight.dtype}, not floating point; leave {found.consumer!r} out "
            "of the rules"
        )
    _refuse_nonfinite(weight, f"the weight of {found.consumer!r} holds NaN or infinity")
    axis = found.quantizers[0].axis
    rows = weight.reshape(1, -1) if axis is None else weight.movedim(axis, 0).flatten(1)
    ends: dict[Quantizer, list[tuple[Tensor, Tensor]]] = {quantizer: [] for quantizer in found.quantizers}
    for some in rows.split(_ROWS):
        observer = found.observer()
        observer.observe(some)
        for quantizer, known in ends.items():
            known.append(observer.range_for(quantizer) if hasattr(observer, "range_for") else observer.range())
    for quantizer, known in ends.items():
        quantizer.set_range(torch.cat([low for low, _ in known]), torch.cat([high for _, high in known]))


def _observe(
    gm: fx.GraphModule, activations: Sequence[_Waiting], data: Iterable[Any] | None, positional: int | None
) -> list[Observer]:
    """Run all data through the graph and return what has observed each activation."""
    if data is None:
        raise NotReadyError(
            f"step quantize needs data to calibrate {len(activations)} inputs (the first is that of "
            f"{activations[0].consumer!r}): pass data=loader, any iterable of batches, or use a policy "
            "that quantizes weights only, such as 'w8'"
        )
    observers = [found.observer() for found in activations]
    position = 0

    def watch(found: _Waiting, observer: Observer) -> Any:
        def observe(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x, where = args[0], f"calibration batch {position}: the input of {found.consumer!r}"
            if not x.is_floating_point():
                raise NotReadyError(
                    f"{where} is {x.dtype}, not floating point; leave {found.consumer!r} out of the rules"
                )
            if not x.numel():
                raise NotReadyError(f"{where} holds no values")
            _refuse_nonfinite(x, f"{where} holds NaN or infinity")
            observer.observe(x.reshape(1, -1))

        return gm.get_submodule(str(found.node.target)).register_forward_pre_hook(observe)

    handles = [watch(found, observer) for found, observer in zip(activations, observers, strict=True)]
    try:
        for batch in batches(gm, progress(data, "calibrating"), positional):
            try:
                gm(*batch.inputs.args, **batch.inputs.kwargs)
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                raise NotReadyError(
                    f"calibration batch {position} does not run through the model: {error}"
                ) from error
            position += 1
    finally:
        for handle in handles:
            handle.remove()
    if position == 0:
        raise NotReadyError("calibration needs data, but `data` yielded no batch")
    return observers


def _refuse_nonfinite(x: Tensor, message: str) -> None:
    low, high = torch.aminmax(x)
    if not (low.isfinite() and high.isfinite()):
        raise NotReadyError(message)


def _consumers(gm: fx.GraphModule) -> dict[fx.Node, str]:
    """Return for each node the name of the first layer, in graph order, that its value reaches."""
    names = {call: layer.name for layer in layers(gm) for call in layer.calls}
    place = {node: index for index, node in enumerate(gm.graph.nodes)}
    first: dict[fx.Node, fx.Node] = {}
    for node in reversed(gm.graph.nodes):
        reached = [node] if node in names else [first[user] for user in node.users if user in first]
        if reached:
            first[node] = min(reached, key=place.__getitem__)
    return {node: names[call] for node, call in first.items()}
