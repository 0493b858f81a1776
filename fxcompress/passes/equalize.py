"""equalize: scales the channels between two layers so that both weights use their ranges alike."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxcompress.errors import PassError
from fxcompress.graph import layers
from fxcompress.graph.edit import get_tensor, inserted, module_of
from fxcompress.graph.operators.calls import operator_of
from fxcompress.passes.apply import apply
from fxcompress.passes.between import Passage, is_clamp, passage
from fxcompress.passes.channel_matrix import KINDS, Scalable, readers, scalable
from fxcompress.policies import Equalize

_UNCHANGED = 2e-7  # the mean change of a weight's magnitudes, summed over the weights
_ROUNDS = 1000
_MOST = 1e8  # a channel is scaled by no more at a time
_SHIFTED = ("max_pool", "adaptive_avg_pool", "mean", "flatten", "contiguous")  # pass a shift of a channel on
_DEVIATIONS = 3.0  # of a normal distribution 0.1% lie further below its mean


class _Pair(NamedTuple):
    """Two layers of which the first feeds the second and nothing else, and what lies between."""

    first: Scalable
    second: Scalable
    between: Passage


@apply.register
@torch.no_grad()
def equalize(spec: Equalize, gm: fx.GraphModule) -> None:
    """Scale the channels between each two layers until both weights have the same range there.

    Cross-layer equalization (Nagel et al. 2019, arXiv:1906.04721, section 4.1): a channel is divided in the first
    weight and multiplied in the second by s = sqrt(r1 / r2), all pairs in turn until nothing changes. Two layers are
    a pair where the first goes only into the second, through nothing but operators that a positive factor passes.
    What the model computes stays, apart from ReLU6 replaced by ReLU, and from what `absorb_bias` moves: a channel's
    part c = max(0, beta - 3 gamma) that a batch norm lets almost no value fall below becomes part of the next bias,
    where no padding is in the way (section 4.1.3). Raises PassError where there is no pair, or where an earlier step
    has put something on a weight or between two layers.
    """
    where = spec.at or spec.kind
    pairs, reasons = _pairs(gm, where, replace_clamps=spec.replace_relu6)
    if not pairs:
        folding = any("BatchNorm" in reason for reason in reasons)
        advice = "state fold_batch_norm before it" if folding else "take equalize out of the policy"
        said = "; ".join(reasons[:3]) or f"the model has no layer of kind {', '.join(KINDS)}"
        raise PassError(f"{where}: there is nothing to equalize: {said}; {advice}")
    for node in {node for pair in pairs for node in pair.between.nodes if is_clamp(node)}:
        node.target, node.args = F.relu, (node.args[0],)
    gm.recompile()
    if any(pair.first.layer.weight_tensor(gm).is_meta for pair in pairs):
        return  # a model without values is planned, not run
    for pair, factor in zip(pairs, _factors(gm, pairs), strict=True):
        pair.first.scale_outputs(gm, 1 / factor)
        pair.second.scale_inputs(gm, factor.repeat_interleave(pair.between.repeats))
    if spec.absorb_bias:
        for pair in pairs:
            _absorb(gm, pair)


def _pairs(gm: fx.GraphModule, where: str, *, replace_clamps: bool) -> tuple[list[_Pair], list[str]]:
    """Return the pairs in graph order, and for the other layers why they are not the first of one."""
    known, found = readers(gm), {}
    for layer in layers(gm):
        if layer.kind in KINDS:
            for edge in layer.weight_edges():
                _refuse_inserted(gm, edge, f"the weight of {layer.name!r}", where)
            found[layer.calls[0]] = scalable(gm, layer, known)
    pairs, reasons = [], []
    for call, first in found.items():
        if first is None:
            reasons.append(f"the parameters of {call.name!r} are computed or serve something else too")
            continue
        between = passage(gm, call, first.positions, clamped=replace_clamps)
        if between.end is None or between.why:
            reasons.append(between.why)
            continue
        last = between.nodes[-1] if between.nodes else call
        _refuse_inserted(gm, between.end, f"tensor {last.name!r}", where)
        second = found.get(between.end)
        if second is None or not _fit(gm, first, second, between):
            reasons.append(f"{call.name!r} does not go channel by channel into a layer that can be scaled")
        else:
            pairs.append(_Pair(first, second, between))
    return pairs, reasons


def _refuse_inserted(gm: fx.GraphModule, node: fx.Node, what: str, where: str) -> None:
    if inserted(gm, node):
        raise PassError(
            f"{where}: {what} already has {module_of(gm, node)} from an earlier step; state equalize before it"
        )


def _fit(gm: fx.GraphModule, first: Scalable, second: Scalable, between: Passage) -> bool:
    """Return whether the channels that one layer gives are those that enter the other one."""
    last = between.nodes[-1] if between.nodes else first.call
    groups, outputs, _ = first.matrix(gm).shape
    groups_read, _, inputs = second.matrix(gm).shape
    return (
        second.call.args[0] is last
        and second.positions == between.positions
        and groups * outputs * between.repeats == groups_read * inputs
    )


def _factors(gm: fx.GraphModule, pairs: Sequence[_Pair]) -> list[Tensor]:
    """Return by what each channel of each pair is divided in the first weight and multiplied in the second.

    Found on the largest magnitude of each kernel, so that weights are read once and written once.
    """
    matrices = {one.call: one.matrix(gm) for pair in pairs for one in pair[:2]}
    factors = [torch.ones(matrices[pair.first.call].shape[:2].numel()).double() for pair in pairs]
    for _ in range(_ROUNDS):
        before = {call: matrix.clone() for call, matrix in matrices.items()}
        for index, (first, second, between) in enumerate(pairs):
            given, read = matrices[first.call], matrices[second.call]
            reach = given.amax(2).flatten()
            reach_read = read.amax(1).view(-1, between.repeats).amax(1)
            ratio = (reach / reach_read).sqrt_().clamp_(1 / _MOST, _MOST)
            factor = torch.where((reach > 0) & (reach_read > 0), ratio, 1.0)
            given /= factor.view(*given.shape[:2], 1)
            read *= factor.repeat_interleave(between.repeats).view(read.shape[0], 1, -1)
            factors[index] = factors[index].to(factor) * factor
        if sum((matrices[call] - old).abs().mean() for call, old in before.items()) <= _UNCHANGED:
            break
    return factors


def _absorb(gm: fx.GraphModule, pair: _Pair) -> None:
    """Move what a batch norm leaves above zero of almost every value into the next layer's bias."""
    first, second, between = pair
    if first.gamma is None or first.beta is None or second.bias is None or not _keeps_shifts(gm, pair):
        return
    gamma, beta = (get_tensor(gm, str(node.target)) for node in (first.gamma, first.beta))
    shift = (beta - _DEVIATIONS * gamma.abs()).clamp(min=0)
    response = second.response(gm, shift.repeat_interleave(between.repeats))
    beta.sub_(shift)
    get_tensor(gm, str(second.bias.target)).add_(response)


def _keeps_shifts(gm: fx.GraphModule, pair: _Pair) -> bool:
    """Return whether a number added to a channel, where it stays above zero, is added alike to all that is read."""
    kinds = [operator.kind for node in pair.between.nodes if (operator := operator_of(node)) is not None]
    names = list(pair.second.layer.operator.arguments)
    padding = pair.second.call.args[names.index("padding")] if "padding" in names else ()
    padded = padding == "same" or (isinstance(padding, tuple) and any(padding))
    moves = [kind for kind in kinds if kind != "relu" and not kind.startswith(_SHIFTED)]
    return kinds.count("relu") == 1 and not moves and not padded and pair.second.layer.operator.out_axis == 0
