"""Calibration: gives every quantizer its range, weights from themselves and activations from data."""

from collections.abc import Callable, Iterable
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


class _Watched(NamedTuple):
    """A node whose input is to be observed for the quantizers on it (several when their bits are open)."""

    node: fx.Node
    quantizers: tuple[Quantizer, ...]
    observer: Observer


Ranges = dict[str, tuple[float, float]]


def calibrate(gm: fx.GraphModule, data: Iterable[Any] | None, positional: int | None = None) -> Ranges:
    """Set the range of each quantizer that has none yet, with the observer that its rule names.

    Weights need no data. Activations are observed over all batches of `data` with every quantizer off.
    Returns the ranges of activations by tensor name.
    Raises NotReadyError when data is needed and missing or empty, or holds NaN or infinity (names batch and layer).
    """
    waiting = [watched for node in gm.graph.nodes if (watched := _watched(gm, node)) is not None]
    with float_mode(gm), torch.no_grad():
        for node, quantizers, observer in waiting:
            if is_constant(gm, node.args[0]):
                weight = constant_value(gm, node.args[0])
                _refuse_nonfinite(weight, f"the weight of {_consumer(gm, node)!r} holds NaN or infinity")
                observer.observe(_rows(weight, quantizers[0].axis))
        activations = [watched for watched in waiting if not is_constant(gm, watched.node.args[0])]
        if activations:
            _observe_activations(gm, activations, data, positional)
    for _, quantizers, observer in waiting:
        for quantizer in quantizers:
            quantizer.set_range(*observer.range())
    return {tensor_under(gm, node).name: _floats(observer) for node, _, observer in activations}


def _floats(observer: Observer) -> tuple[float, float]:
    low, high = observer.range()
    return low.item(), high.item()


def _watched(gm: fx.GraphModule, node: fx.Node) -> _Watched | None:
    module = module_of(gm, node)
    options = module.options.values() if isinstance(module, Choice) else [module]
    quantizers = tuple(
        one for one in options if isinstance(one, Quantizer) and not one.ready and one.observer is not None
    )
    if not quantizers:
        return None
    reference: Any = quantizers[0].observer
    return _Watched(node, quantizers, reference.function(OBSERVERS)(**reference.args))


def _rows(x: Tensor, axis: int | None) -> Tensor:
    return x.reshape(1, -1) if axis is None else x.movedim(axis, 0).flatten(1)


def _observe_activations(
    gm: fx.GraphModule, activations: list[_Watched], data: Iterable[Any] | None, positional: int | None
) -> None:
    first = _consumer(gm, activations[0].node)
    if data is None:
        raise NotReadyError(
            f"calibrating the inputs of {len(activations)} tensors (the first is the input of {first!r}) needs data: pass "
            "data=loader, any iterable of batches, or use a policy that quantizes weights only, such as 'w8'"
        )
    position = [0]
    handles = [
        gm.get_submodule(str(node.target)).register_forward_pre_hook(_hook(gm, node, observer, position))
        for node, _, observer in activations
    ]
    try:
        for batch in batches(gm, progress(data, "calibrating"), positional):
            gm(*batch.inputs.args, **batch.inputs.kwargs)
            position[0] += 1
    finally:
        for handle in handles:
            handle.remove()
    if position[0] == 0:
        raise NotReadyError("calibration needs data, but `data` yielded no batch")


def _hook(
    gm: fx.GraphModule, node: fx.Node, observer: Observer, position: list[int]
) -> Callable[[nn.Module, Any], None]:
    consumer = _consumer(gm, node)

    def observe(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        _refuse_nonfinite(
            args[0], f"calibration batch {position[0]}: the input of {consumer!r} holds NaN or infinity"
        )
        observer.observe(_rows(args[0], None))

    return observe


def _refuse_nonfinite(x: Tensor, message: str) -> None:
    low, high = torch.aminmax(x)
    if not (low.isfinite() and high.isfinite()):
        raise NotReadyError(message)


def _consumer(gm: fx.GraphModule, node: fx.Node) -> str:
    """Return the name of the first layer that the tensor on a node reaches."""
    reached = {node}
    for later in gm.graph.nodes:
        if later in reached or any(argument in reached for argument in later.all_input_nodes):
            for layer in layers(gm):
                if later in layer.calls:
                    return layer.name
            reached.add(later)
    return node.name
