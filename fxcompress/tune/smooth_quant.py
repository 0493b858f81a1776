"""SmoothQuant: moves what makes inputs hard to quantize into the weights that they are multiplied with."""

from collections.abc import Collection, Sequence
from functools import partial

import torch
from torch import Tensor, fx, nn
from torch.utils.hooks import RemovableHandle

from fxcompress.graph.edit import chain_under, constant_value, first_argument, module_of, parameter_under
from fxcompress.graph.operators.calls import argument_node, row_of
from fxcompress.graph.shapes import shapes
from fxcompress.measure.float_mode import float_mode
from fxcompress.nn import Quantizer
from fxcompress.tune.channel_scaling import LAYERS, Scaling, scalings
from fxcompress.tune.finished import Finished
from fxcompress.tune.left import say_left
from fxcompress.tune.region_links import links
from fxcompress.tune.walk import Walk
from fxcompress.tune.weights import quantized_weights


def smooth_quant(gm: fx.GraphModule, walk: Walk, finished: Finished, *, alpha: float) -> None:
    """Divide input channel j of linear layers by s_j = max|X_j|^alpha / max|W_j|^(1 - alpha), times it in the weight.

    The maxima are those over all data in the float model, and over the weights of all layers that read the tensor.
    The division goes into what makes the tensor, so that the float model computes what it did: the weight and bias
    of a layer norm, the weight of an RMS norm, or the layer before. The quantizers whose tensors change forget their
    ranges and are to be calibrated anew. Raises PassError where no layer can be smoothed, and warns of those that
    stay as they are (Xiao et al. 2022, equations 3 and 4).
    """
    candidates = [
        one for one in quantized_weights(gm) if one.operator.kind in LAYERS and all(_quantizers(gm, one.calls))
    ]
    first = next(iter(walk.inputs())) if candidates else None
    possible = [] if first is None else scalings(gm, shapes(gm, first) or {}, links(gm, first))
    wanted = {call for one in candidates for call in one.calls}
    found = [scaling for scaling in possible if not wanted.isdisjoint(scaling.calls)]
    smoothed = {call for scaling in found for call in scaling.calls}
    left = {one.layer.name: _NEEDS for one in candidates if smoothed.isdisjoint(one.calls)}
    say_left("smooth_quant", left, len(candidates), what="linear layers on quantized inputs", done="smoothed")
    names = {axis.parameter for scaling in found for axis in (*scaling.divided, *scaling.multiplied)}
    finished.once("scales", gm, sorted(names), partial(_smooth, gm, walk, found, alpha))
    weights = [one.quantizer for one in quantized_weights(gm) if parameter_under(gm, one.node) in names]
    inputs = [module_of(gm, node) for scaling in found for node in scaling.quantizers]
    for quantizer in (*weights, *inputs):
        assert isinstance(quantizer, Quantizer)
        quantizer.forget_range()


def _quantizers(gm: fx.GraphModule, calls: Sequence[fx.Node]) -> list[str | None]:
    """Return for each call of a layer the name of the quantizer on its input, None where it has none."""
    found = []
    for call in calls:
        chain = chain_under(gm, argument_node(call, row_of(call).inputs[0]))
        found.append(next((str(node.target) for node in chain if isinstance(module_of(gm, node), Quantizer)), None))
    return found


def _smooth(gm: fx.GraphModule, walk: Walk, found: Sequence[Scaling], alpha: float) -> None:
    watched = [[name for name in _quantizers(gm, scaling.calls) if name] for scaling in found]
    peaks = _peaks(gm, walk, {name for names in watched for name in names})
    for scaling, names in zip(found, watched, strict=True):
        known = [peaks[name] for name in names if name in peaks]  # the data may not reach a layer
        if known:
            inputs, weights = torch.stack(known).amax(0), _weight_peaks(gm, scaling)
            scale = inputs.pow(alpha) / weights.pow(1 - alpha)
            scaling.apply(gm, torch.where((inputs > 0) & (weights > 0), scale, 1.0))


@torch.no_grad()
def _peaks(gm: fx.GraphModule, walk: Walk, names: Collection[str]) -> dict[str, Tensor]:
    """Return max|x| over all data for each channel of what enters quantizers in the float model, by their names."""
    peaks: dict[str, Tensor] = {}

    def watch(name: str) -> RemovableHandle:
        def observe(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            peak = args[0].abs().flatten(0, -2).amax(0).double()
            peaks[name] = torch.maximum(peak, peaks.get(name, peak))

        return gm.get_submodule(name).register_forward_pre_hook(observe)

    handles = [watch(name) for name in names]
    try:
        with float_mode(gm):
            for arguments in walk.inputs():
                gm(*arguments.args, **arguments.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return peaks


def _weight_peaks(gm: fx.GraphModule, scaling: Scaling) -> Tensor:
    """Return max|w| over all weights that are multiplied, for each channel."""
    peaks = []
    for call in scaling.calls:
        node = argument_node(call, row_of(call).weight)
        if node is not None and isinstance(module_of(gm, node), Quantizer):
            node = first_argument(node)
        peaks.append(constant_value(gm, node).abs().amax(row_of(call).out_axis).double())
    return torch.stack(peaks).amax(0)


_NEEDS = (
    "the input must come from a norm's weight or a linear layer, and nothing but linear layers may read it, none of "
    "them widened by split_channels"
)
