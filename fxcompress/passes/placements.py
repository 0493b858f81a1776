"""Placements: on which tensors the rules of a quantize step put a quantizer, and for which users."""

from typing import NamedTuple

from torch import fx

from fxcompress.errors import PassError, PolicyError
from fxcompress.graph import Layer
from fxcompress.graph.edit import tensor_under
from fxcompress.passes.apply import Selected, has_computed_weight, selected_layers, warn_of_computed
from fxcompress.passes.tensors import WeightTensor, end_of_chain, weight_tensors
from fxcompress.policies import Quantize
from fxcompress.policies.quantizing import InputSpec, WeightSpec


class Placement(NamedTuple):
    """A quantizer to be put on the tensor that `nodes` hold, for the given users of each."""

    spec: WeightSpec | InputSpec
    at: str
    layer: Layer
    nodes: dict[fx.Node, list[fx.Node]]


Placements = dict[str, Placement]  # by the name of the tensor


def placements(spec: Quantize, gm: fx.GraphModule) -> Placements:
    """Return what the rules of a step say of tensors. Warns of layers whose weight is computed, which it leaves.

    Raises PassError when two rules disagree on one tensor, PolicyError for a rule without bits or with tokens where
    there are none.
    """
    tensors = weight_tensors(gm)
    found: Placements = {}
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
                _place_weight(selected, tensor, gm, found)
        if selected.rule.input is not None:
            _place_inputs(selected, gm, found)
    warn_of_computed(computed)
    return found


def _place_weight(selected: Selected, tensor: WeightTensor, gm: fx.GraphModule, found: Placements) -> None:
    nodes = {
        node: [call for call in tensor.calls if end_of_chain(gm, node) in call.all_input_nodes]
        for node in tensor.nodes
    }
    place(tensor.name, Placement(selected.rule.weight, selected.at, selected.layer, nodes), found)


def _place_inputs(selected: Selected, gm: fx.GraphModule, found: Placements) -> None:
    layer, spec = selected.layer, selected.rule.input
    _refuse_unclear_input(selected, spec)
    for edge in layer.input_edges():
        tensor = tensor_under(gm, edge)
        if tensor.op == "get_attr":  # a parameter that flows in like an activation, not one
            continue
        users = [call for call in layer.calls if edge in [call.args[i] for i in layer.operator.inputs]]
        place(tensor.name, Placement(spec, selected.at, layer, {tensor: users}), found)


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


def place(name: str, new: Placement, found: Placements) -> None:
    """Add a placement to those found, or its users to the one that the tensor has already."""
    if "bits" not in new.spec.model_fields_set:
        field = "weight" if isinstance(new.spec, WeightSpec) else "input"
        raise PolicyError(
            f"{new.at}: {field} of {new.layer.name!r} has no bits; write for example '{field}: {{bits: 8}}'"
        )
    earlier = found.setdefault(name, new)
    if earlier.spec != new.spec:
        raise PassError(
            f"tensor {name!r} is shared by {earlier.layer.name!r} and {new.layer.name!r}, but their rules disagree: "
            f"{earlier.at} says {earlier.spec.plain()}, {new.at} says {new.spec.plain()}; state one for both"
        )
    for node, users in new.nodes.items():
        known = earlier.nodes.setdefault(node, users)
        known.extend(user for user in users if user not in known)
