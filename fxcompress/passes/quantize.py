"""quantize: puts quantizers on weights and on the inputs of operators, or a Choice of them where bits are open."""

from typing import NamedTuple

import torch
from torch import fx, nn

from fxcompress.errors import PassError, PolicyError
from fxcompress.graph import Layer
from fxcompress.graph.edit import QUANTIZER_CHOICE, constant_value, insert, tensor_under
from fxcompress.nn import Choice, Quantizer
from fxcompress.passes.apply import Selected, apply, has_computed_weight, selected_layers, warn_of_computed
from fxcompress.passes.quantizer_options import options
from fxcompress.passes.tensors import WeightTensor, end_of_chain, refuse_second, weight_tensors
from fxcompress.policies import Quantize
from fxcompress.policies.base import nearest
from fxcompress.policies.quantizing import InputSpec, WeightSpec


class _Placement(NamedTuple):
    """A quantizer to be put on the tensor `name`, held by `nodes`, for the given users."""

    spec: WeightSpec | InputSpec
    at: str
    layer: Layer
    nodes: dict[fx.Node, list[fx.Node]]


@apply.register
def quantize(spec: Quantize, gm: fx.GraphModule) -> None:
    """Put a quantizer on each weight and input that the rules name; each is named after its tensor.

    Layers that share a tensor share its quantizer. Raises PassError when two rules disagree on one tensor, and
    PolicyError for a rule without bits, for a token where there is none and for a range that nothing takes. Warns of
    layers whose weight is computed, which stays as it is.
    """
    tensors = weight_tensors(gm)
    placements: dict[str, _Placement] = {}
    computed: list[Selected] = []
    for selected in selected_layers(spec, gm):
        if selected.layer.operator.weight is None and selected.rule.input is None:
            raise PassError(
                f"{selected.at}: {selected.layer.name!r} ({selected.layer.kind}) has no weight; state its input"
            )
        if selected.rule.weight is not None and selected.rule.weight.stated() != {"bits": "float"}:
            if has_computed_weight(selected):
                computed.append(selected)
            for tensor in tensors.get(selected.layer.name, ()):
                _place_weight(selected, tensor, gm, placements)
        if selected.rule.input is not None:
            _place_inputs(selected, gm, placements)
    inputs = {name: one.spec for name, one in placements.items() if isinstance(one.spec, InputSpec)}
    for name in spec.ranges:
        where = spec.at or spec.kind
        if name not in inputs:
            raise PolicyError(f"{where}: ranges: no rule quantizes an input named {name!r}{nearest(name, inputs)}")
        if inputs[name].dynamic:
            raise PolicyError(f"{where}: ranges: {name!r} is quantized with 'dynamic: true' and takes no range")
    for name, placement in placements.items():
        _insert(gm, name, placement, spec.ranges.get(name))
    warn_of_computed(computed)
    gm.recompile()


def _place_weight(
    selected: Selected, tensor: WeightTensor, gm: fx.GraphModule, placements: dict[str, _Placement]
) -> None:
    nodes = {
        node: [call for call in tensor.calls if end_of_chain(gm, node) in call.all_input_nodes]
        for node in tensor.nodes
    }
    _place(tensor.name, _Placement(selected.rule.weight, selected.at, selected.layer, nodes), placements)


def _place_inputs(selected: Selected, gm: fx.GraphModule, placements: dict[str, _Placement]) -> None:
    layer, spec = selected.layer, selected.rule.input
    _refuse_unclear_input(selected, spec)
    for edge in layer.input_edges():
        tensor = tensor_under(gm, edge)
        if tensor.op == "get_attr":  # a parameter that flows in like an activation, not one
            continue
        users = [call for call in layer.calls if edge in [call.args[i] for i in layer.operator.inputs]]
        _place(tensor.name, _Placement(spec, selected.at, layer, {tensor: users}), placements)


def _refuse_unclear_input(selected: Selected, spec: InputSpec) -> None:
    """Raise PolicyError for what rules that are clear each on their own say together, and for tokens of images."""
    layer, where = selected.layer, f"{selected.at}: input of {selected.layer.name!r}"
    for field in ("per", "dynamic"):
        if why := spec.meaningless(field):
            raise PolicyError(f"{where}: {field} {why}")
    if spec.per == "token" and layer.kind.startswith("conv"):
        raise PolicyError(
            f"{where}: the last axis of what enters a {layer.kind} is no features, so it has no tokens; write "
            "'per: tensor' there"
        )


def _place(name: str, new: _Placement, placements: dict[str, _Placement]) -> None:
    if "bits" not in new.spec.model_fields_set:
        field = "weight" if isinstance(new.spec, WeightSpec) else "input"
        raise PolicyError(
            f"{new.at}: {field} of {new.layer.name!r} has no bits; write for example '{field}: {{bits: 8}}'"
        )
    earlier = placements.setdefault(name, new)
    if earlier.spec != new.spec:
        raise PassError(
            f"tensor {name!r} is shared by {earlier.layer.name!r} and {new.layer.name!r}, but their rules disagree: "
            f"{earlier.at} says {earlier.spec.plain()}, {new.at} says {new.spec.plain()}; state one for both"
        )
    for node, users in new.nodes.items():
        known = earlier.nodes.setdefault(node, users)
        known.extend(user for user in users if user not in known)


def _insert(gm: fx.GraphModule, name: str, placement: _Placement, known: tuple[float, float] | None) -> None:
    node = next(iter(placement.nodes))
    offered = options(
        placement.spec, placement.layer.operator.out_axis, lambda: constant_value(gm, end_of_chain(gm, node)).shape
    )
    for option in offered if known is not None else ():
        if isinstance(option.module, Quantizer):
            option.module.set_range(*torch.tensor(known, dtype=torch.float64))
    module, suffix = offered[0].module, "_quantizer"
    if len(offered) > 1:
        modules = {option.label: option.module for option in offered}
        module, suffix = Choice(modules, {option.label: option.settings for option in offered}), QUANTIZER_CHOICE
    elif isinstance(module, nn.Identity):
        return
    for node, users in placement.nodes.items():
        refuse_second(gm, node, Quantizer, placement.at)
        insert(gm, end_of_chain(gm, node), f"{name}{suffix}", module, users)
