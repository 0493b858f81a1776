"""prune: puts masks on weights that set the smallest magnitudes to zero; a Choice of them where sparsity is open."""

import torch
from torch import Tensor, fx, nn

from fxcompress.errors import PassError
from fxcompress.graph.edit import MASK_CHOICE, constant_value, insert, inserted
from fxcompress.nn import Choice, Mask
from fxcompress.passes.apply import Selected, apply, has_computed_weight, selected_layers, warn_of_computed
from fxcompress.passes.tensors import WeightTensor, refuse_second, weight_tensors
from fxcompress.policies import Prune
from fxcompress.policies.rules import is_open


@apply.register
def prune(spec: Prune, gm: fx.GraphModule) -> None:
    """Mask in each selected weight the share of elements with the smallest magnitude (Han et al. 2015).

    A mask sits before the quantizer of its weight whatever the order of the steps. Raises PassError when two rules
    disagree on a shared weight. Warns of layers whose weight is computed, which stay as they are.
    """
    tensors = weight_tensors(gm)
    done: dict[str, Selected] = {}
    computed: list[Selected] = []
    for selected in selected_layers(spec, gm):
        if has_computed_weight(selected):
            computed.append(selected)
            continue
        if selected.layer.weight is None:
            raise PassError(f"{selected.at}: {selected.layer.name!r} ({selected.layer.kind}) has no weight to prune")
        for tensor in tensors[selected.layer.name]:
            earlier = done.setdefault(tensor.name, selected)
            if earlier is selected:
                _insert(selected, tensor, gm)
            elif earlier.rule.sparsity != selected.rule.sparsity:
                raise PassError(
                    f"weight {tensor.name!r} is shared by {earlier.layer.name!r} and {selected.layer.name!r}, but "
                    f"their rules disagree: {earlier.at} says sparsity {earlier.rule.sparsity}, {selected.at} says "
                    f"{selected.rule.sparsity}; state one for both"
                )
    warn_of_computed(computed)
    gm.recompile()


def _insert(selected: Selected, tensor: WeightTensor, gm: fx.GraphModule) -> None:
    sparsity = selected.rule.sparsity
    if sparsity == 0.0:
        return
    weight = constant_value(gm, tensor.nodes[0])
    module: nn.Module
    if is_open(sparsity):
        options = {sparsity_label(share): _mask(weight, share) for share in sparsity}
        settings = {sparsity_label(share): {"sparsity": share} for share in sparsity}
        name, module = f"{tensor.name}{MASK_CHOICE}", Choice(options, settings)
    else:
        name, module = f"{tensor.name}_mask", _mask(weight, sparsity)
    for node in tensor.nodes:
        refuse_second(gm, node, Mask, selected.at)
        insert(gm, node, name, module, [user for user in node.users if _sees_weight(user, tensor, gm)])


def sparsity_label(share: float) -> str:
    """Return the name of a sparsity, for example `50% sparse`."""
    return f"{100 * share:g}% sparse" if share else "dense"


def _sees_weight(user: fx.Node, tensor: WeightTensor, gm: fx.GraphModule) -> bool:
    return user in tensor.calls or inserted(gm, user)


def _mask(weight: Tensor, sparsity: float) -> nn.Module:
    if sparsity == 0.0:
        return nn.Identity()
    keep = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
    smallest = weight.abs().flatten().argsort(stable=True)[: round(sparsity * weight.numel())]
    keep[smallest] = False
    return Mask(keep.view_as(weight))
