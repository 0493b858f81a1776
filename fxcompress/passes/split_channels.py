"""split_channels: input channels that hold the largest weights are computed twice, each with a part of the weight."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

from torch import fx

from fxcompress.errors import PassError
from fxcompress.graph import layers
from fxcompress.graph.edit import chain_under, constant_value, insert, module_of
from fxcompress.graph.operators.calls import operator_of
from fxcompress.nn import Choice, Quantizer
from fxcompress.nn.channel_split import ChannelSplit, copied_channels, split_outliers
from fxcompress.passes.apply import Selected, apply, changed, has_computed_weight, selected_layers, warn_of_computed
from fxcompress.passes.tensors import WeightTensor, chain, end_of_chain, weight_tensors
from fxcompress.policies import SplitChannels
from fxcompress.policies.rules import Matched

# Where input channels lie, in the weight and in the input.
_AXES = {
    "linear": (1, -1),
    **{f"conv{axes}d": (1, -1 - axes) for axes in (1, 2, 3)},
    **{f"conv_transpose{axes}d": (0, -1 - axes) for axes in (1, 2, 3)},
}


@apply.register
def split_channels(spec: SplitChannels, gm: fx.GraphModule) -> None:
    """Widen the selected weights by a share of their input channels, which take over halves of the outliers.

    Outlier channel splitting (Zhao et al. 2019, arXiv:1901.09504): the layer computes the same, and its weight's
    largest magnitude falls, and with it the step of its quantizer. Masks and quantizers of later steps sit where they
    would without it. Raises PassError where a layer that cannot be split is named, no layer is left to split, two
    rules disagree on a shared weight, or a weight is quantized or split already. Warns of other layers that cannot be
    split, such as those with groups, which stay as they are.
    """
    tensors = weight_tensors(gm)
    done: dict[str, Selected] = {}
    computed: list[Selected] = []
    whole: list[Selected] = []
    for selected in selected_layers(spec, gm):
        if has_computed_weight(selected):
            computed.append(selected)
            continue
        for tensor in tensors.get(selected.layer.name, ()):
            earlier = done.setdefault(tensor.name, selected)
            if earlier is not selected:
                _refuse_other_ratio(tensor, earlier, selected)
            elif _splittable(tensor):
                _split(selected, tensor, gm)
            else:
                whole.append(selected)
    _tell(whole, some=len(done) > len(whole))
    warn_of_computed(computed)
    gm.recompile()


@changed.register
def _changed(spec: SplitChannels, gm: fx.GraphModule, matched: Sequence[Matched[Any]]) -> Sequence[Matched[Any]]:
    split = {layer.name for layer in layers(gm) if any(_is_split(gm, edge) for edge in layer.weight_edges())}
    return [one for one in matched if one.subject.name in split]


def _is_split(gm: fx.GraphModule, edge: fx.Node) -> bool:
    return any(isinstance(module_of(gm, node), ChannelSplit) for node in chain_under(gm, edge))


def _refuse_other_ratio(tensor: WeightTensor, earlier: Selected, later: Selected) -> None:
    if earlier.rule.ratio != later.rule.ratio:
        raise PassError(
            f"weight {tensor.name!r} is shared by {earlier.layer.name!r} and {later.layer.name!r}, but their rules "
            f"disagree: {earlier.at} says ratio {earlier.rule.ratio}, {later.at} says {later.rule.ratio}; state one "
            "for both"
        )


def _splittable(tensor: WeightTensor) -> bool:
    """Return whether each call that reads a weight multiplies all input channels with all output channels."""
    operators = [(call, operator_of(call)) for call in tensor.calls]
    return all(
        operator is not None
        and operator.kind in _AXES
        and ("groups" not in operator.arguments or call.args[list(operator.arguments).index("groups")] == 1)
        for call, operator in operators
    )


def _tell(whole: Sequence[Selected], *, some: bool) -> None:
    """Warn of layers that stay whole; raise PassError where one is named or no other layer is split."""
    for one in whole:
        if one.layer.name in one.rule.select.names or not some:
            raise PassError(
                f"{one.at}: the input channels of {one.layer.name!r} ({one.layer.kind}) cannot be split: {_WHOLE}"
            )
    if whole:
        names = ", ".join(repr(one.layer.name) for one in whole[:3])
        names += f" and {len(whole) - 3} more" if len(whole) > 3 else ""
        message = f"{whole[0].at}: the input channels of {names} are not split: {_WHOLE}"
        warnings.warn(message, stacklevel=2)


_WHOLE = f"only {', '.join(_AXES)} without groups can; leave the others out of the rules"


def _split(selected: Selected, tensor: WeightTensor, gm: fx.GraphModule) -> None:
    first = tensor.nodes[0]
    for node in chain(gm, first):
        module = module_of(gm, node)
        present = list(module.options.values()) if isinstance(module, Choice) else [module]
        if any(isinstance(one, Quantizer | ChannelSplit) for one in present):
            raise PassError(
                f"{selected.at}: the weight of {selected.layer.name!r} already has {module} from an earlier step; "
                "state split_channels once, before quantize"
            )
    axis, input_axis = _AXES[selected.layer.kind]
    weight = constant_value(gm, end_of_chain(gm, first))
    count = math.ceil(selected.rule.ratio * weight.shape[axis] - 1e-9)  # 0.07 x 100 is a little more than 7
    module, name = split_outliers(weight, count, axis), f"{tensor.name}_split"
    for node in tensor.nodes:
        end = end_of_chain(gm, node)
        insert(gm, end, name, module, [user for user in end.users if user in tensor.calls])
    for call in tensor.calls:
        with gm.graph.inserting_before(call):
            added = gm.graph.get_attr(f"{name}.added")
            copied = gm.graph.call_function(copied_channels, (call.args[0], added, input_axis))
        copied._rename(f"{call.name}_input")
        call.update_arg(0, copied)
