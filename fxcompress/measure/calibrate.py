"""Calibration: gives every quantizer its range, weights from themselves and activations from data."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from fxcompress.errors import NotReadyError
from fxcompress.graph import layers
from fxcompress.graph.edit import constant_value, is_constant, module_of, tensor_of_quantizer
from fxcompress.graph.inputs import batches
from fxcompress.measure.bit_allocation import allocate_bits
from fxcompress.measure.float_mode import float_mode
from fxcompress.measure.observers import OBSERVERS, Observer
from fxcompress.measure.observing.ranges import ends
from fxcompress.measure.progress import progress
from fxcompress.nn import ChannelSplit, Choice, CodebookQuantizer, Layout, Quantizer, UniformQuantizer
from fxcompress.nn.allocated import AllocatedQuantizer

_ROWS = 1024  # channels of a weight observed at a time: what an observer keeps for each adds up

Range = tuple[float, float]
Ranges = Mapping[str, Mapping[str | None, Range]]  # of activations, by tensor and by option of a Choice, else by None


class _Waiting(NamedTuple):
    """A node whose quantizers are not ready, by option; a decided one stands under None.

    `consumer` is the first layer that its tensor reaches; `observer` makes what is to find the range.
    """

    node: fx.Node
    quantizers: Mapping[str | None, Quantizer]
    consumer: str
    observer: Callable[[], Observer]


def calibrate(gm: fx.GraphModule, data: Iterable[Any] | None, positional: int | None = None) -> Ranges:
    """Set the range of each quantizer that has none yet, with the observer that its rule names, and fit codebooks.

    Weights need no data. Activations are observed over all batches of `data` with every quantizer off. An observer
    with `range_for` is asked for each quantizer on its own. Returns the ranges of activations.
    Raises NotReadyError when data is needed and missing or empty, or holds NaN or infinity (names batch and layer).
    """
    consumers = _consumers(gm)
    weights: list[_Waiting] = []
    activations: list[_Waiting] = []
    for node in gm.graph.nodes:
        found = _waiting(gm, node, consumers)
        if found is not None:
            (weights if is_constant(gm, node) else activations).append(found)
    known: dict[str, dict[str | None, Range]] = {}
    with float_mode(gm), torch.no_grad():
        for found in weights:
            _set_ranges_of_weight(gm, found)
        observers = _observe(gm, activations, data, positional) if activations else []
        for found, observer in zip(activations, observers, strict=True):
            ranges = known.setdefault(tensor_of_quantizer(str(found.node.target)), {})
            for label, quantizer in found.quantizers.items():
                low, high = _range_for(observer, quantizer)
                try:
                    quantizer.set_range(low, high)
                except ValueError as error:  # of an observer that is not ours
                    raise NotReadyError(f"the input of {found.consumer!r}: {error}") from None
                ranges[label] = low.item(), high.item()
    return known


def _waiting(gm: fx.GraphModule, node: fx.Node, consumers: dict[fx.Node, str]) -> _Waiting | None:
    module = module_of(gm, node)
    options: Mapping[Any, nn.Module | None] = module.options if isinstance(module, Choice) else {None: module}
    quantizers = {
        label: one
        for label, one in options.items()
        if isinstance(one, Quantizer) and not one.ready and (one.observer is not None or not one.needs_range)
    }
    if not quantizers:
        return None

    def observer() -> Observer:
        reference = next(one.observer for one in quantizers.values() if one.observer is not None)
        return new_observer(reference)

    return _Waiting(node, quantizers, consumers.get(node, node.name), observer)


def new_observer(reference: Any) -> Observer:
    """Return a new observer, as a rule names it."""
    return reference.function(OBSERVERS)(**reference.args)


def _range_for(observer: Any, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
    return observer.range_for(quantizer) if hasattr(observer, "range_for") else observer.range()


def _set_ranges_of_weight(gm: fx.GraphModule, found: _Waiting) -> None:
    split = module_of(gm, found.node.args[0])
    if isinstance(split, ChannelSplit):
        split.set_step(torch.zeros(()))  # a range is that of plain halves, also when it is found anew
    weight = constant_value(gm, found.node.args[0])
    if weight.is_meta:  # a model without values is planned, not run
        return
    if not weight.is_floating_point():
        raise NotReadyError(
            f"the weight of {found.consumer!r} is {weight.dtype}, not floating point; leave {found.consumer!r} out "
            "of the rules"
        )
    try:
        if weight.numel():
            ends(weight.reshape(1, -1))
    except ValueError as error:
        raise NotReadyError(f"the weight of {found.consumer!r} {error}") from None
    alike: dict[Layout, list[Quantizer]] = {}
    for quantizer in found.quantizers.values():
        if isinstance(quantizer, CodebookQuantizer) and not quantizer.needs_range:
            quantizer.fit(weight)
        elif isinstance(quantizer, AllocatedQuantizer):
            _allocate(quantizer, quantizer.layout.rows(weight), found.observer)
        else:
            alike.setdefault(quantizer.layout, []).append(quantizer)
    for layout, quantizers in alike.items():
        observed = [ranges_of_rows(rows, found.observer, quantizers) for rows in layout.whole_rows(weight)]
        for index, quantizer in enumerate(quantizers):
            quantizer.set_range(*(layout.gather([pair[index][side] for pair in observed]) for side in (0, 1)))
    if isinstance(split, ChannelSplit):
        _let_parts_add_up(split, list(found.quantizers.values()))


def _let_parts_add_up(split: ChannelSplit, quantizers: Sequence[Quantizer]) -> None:
    """Give a split weight the step of its one quantizer, if even steps are alike for all that a part may meet."""
    first = quantizers[0]
    if len(quantizers) == 1 and isinstance(first, UniformQuantizer) and first.layout.per != "group":
        split.set_step(first.scale)


def _allocate(quantizer: AllocatedQuantizer, rows: Tensor, new: Callable[[], Observer]) -> None:
    """Give each channel, which is a row, bits by its span, and then its range.

    Two levels have no range to find: they lie at the mean magnitude on both sides, the least squared error of signs
    (Rastegari et al. 2016, equation 6).
    """
    low, high = (end.double() for end in torch.aminmax(rows, dim=1))
    low, high = low.clamp(max=0), high.clamp(min=0)
    spans = torch.maximum(-low, high) if quantizer.symmetric else high - low
    bits = torch.tensor(allocate_bits(spans.tolist(), quantizer.bits), device=rows.device)
    quantizer.set_bits(bits)
    single = 2 * rows.double().abs().mean(1)
    low, high = torch.where(bits > 1, low, -single), torch.where(bits > 1, high, single)
    form: Any = {"symmetric": quantizer.symmetric, "narrow": quantizer.narrow, "power_of_two": quantizer.power_of_two}
    for width in range(2, 9):
        here = bits == width
        if here.any():
            alike = UniformQuantizer(width, axis=0, channels=int(here.sum()), **form)
            low[here], high[here] = (end.double() for end in ranges_of_rows(rows[here], new, [alike])[0])
    quantizer.set_range(low, high)


def ranges_of_rows(
    rows: Tensor, new: Callable[[], Observer], quantizers: Sequence[Quantizer]
) -> list[tuple[Tensor, Tensor]]:
    """Return for each quantizer the ends that a new observer finds in each row."""
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in quantizers]
    for some in rows.split(_ROWS):
        observer = new()
        observer.observe(some)
        for known, quantizer in zip(found, quantizers, strict=True):
            known.append(_range_for(observer, quantizer))
    return [(torch.cat([low for low, _ in known]), torch.cat([high for _, high in known])) for known in found]


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
            try:
                observer.observe(x.reshape(1, -1))
            except ValueError as error:
                raise NotReadyError(f"{where} {error}") from None

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
