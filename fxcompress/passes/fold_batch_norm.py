"""fold_batch_norm: batch norms become part of the weight and bias before them, as a computation on those edges."""

from typing import Any, NamedTuple

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxcompress.errors import PassError
from fxcompress.graph.edit import constant_value, inserted, is_constant, module_of
from fxcompress.graph.operators.calls import Operator, operator_of
from fxcompress.nn.functional import folded_bias, folded_weight
from fxcompress.passes.apply import apply
from fxcompress.policies import FoldBatchNorm

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class _Pair(NamedTuple):
    """A layer's call, its row of the operator table, and the batch norm that follows it."""

    call: fx.Node
    operator: Operator
    norm: _BatchNorm
    norm_call: fx.Node


@apply.register
def fold_batch_norm(spec: FoldBatchNorm, gm: fx.GraphModule) -> None:
    """Fold each batch norm whose input is used by nothing else into its convolution or linear layer.

    The parameters and statistics stay under their own names and become edges (Jacob et al. 2018, section 3.2), so
    that the original's state_dict still fits and gradients reach them; the statistics are those of eval mode from
    here on. Raises PassError where an earlier step has put something on the weight. After a linear layer the norm is
    taken to normalize its features: a call in which it has another axis is refused.
    """
    for node in list(gm.graph.nodes):
        pair = _pair(gm, node)
        if pair is not None and _foldable(pair, gm):
            _fold(pair, gm)
    gm.recompile()


def _pair(gm: fx.GraphModule, norm_call: fx.Node) -> _Pair | None:
    norm = module_of(gm, norm_call)
    call = norm_call.args[0] if norm_call.args else None
    operator = operator_of(call) if isinstance(call, fx.Node) else None
    if not isinstance(norm, _BatchNorm) or not isinstance(call, fx.Node) or operator is None:
        return None
    return _Pair(call, operator, norm, norm_call)


def _foldable(pair: _Pair, gm: fx.GraphModule) -> bool:
    calls = [node for node in gm.graph.nodes if node.op == "call_module" and node.target == pair.norm_call.target]
    return (
        pair.operator.channels == "product"
        and pair.operator.bias is not None
        and type(pair.norm) in _PLAIN  # a subclass may compute something else
        and not (pair.norm._forward_hooks or pair.norm._forward_pre_hooks)
        and pair.norm.running_mean is not None  # without running statistics there is nothing constant to fold
        and len(pair.call.users) == 1
        and len(calls) == 1
        and (pair.operator.kind != "linear" or _normalizes_features(pair, gm))
    )


def _normalizes_features(pair: _Pair, gm: fx.GraphModule) -> bool:
    """Return whether the norm's axis can be the features of a linear layer: with three axes it is the middle one."""
    weight = pair.call.args[1]
    return is_constant(gm, weight) and constant_value(gm, weight).shape[0] == pair.norm.num_features


def _fold(pair: _Pair, gm: fx.GraphModule) -> None:
    call, operator, norm, norm_call = pair
    arguments: list[Any] = list(call.args)
    at_weight, at_bias = operator.weight, operator.bias
    assert at_weight is not None
    assert at_bias is not None
    weight, bias = arguments[at_weight], arguments[at_bias]
    if inserted(gm, weight):
        raise PassError(
            f"fold_batch_norm: the weight of {call.name!r} already has {module_of(gm, weight)} from an earlier step; "
            "state fold_batch_norm before it"
        )
    name, graph = norm_call.target, gm.graph
    with graph.inserting_before(call):
        gamma = graph.get_attr(f"{name}.weight") if norm.affine else None
        beta = graph.get_attr(f"{name}.bias") if norm.affine else None
        mean, variance = graph.get_attr(f"{name}.running_mean"), graph.get_attr(f"{name}.running_var")
        new_weight = graph.call_function(folded_weight, (weight, gamma, variance, norm.eps, operator.out_axis))
        new_bias = graph.call_function(folded_bias, (bias, gamma, beta, mean, variance, norm.eps))
        if operator.kind == "linear":
            graph.call_function(expect_features, (call.args[0], str(name)))
    new_weight._rename(f"{call.name}_weight_folded")
    new_bias._rename(f"{call.name}_bias_folded")
    arguments[at_weight], arguments[at_bias] = new_weight, new_bias
    call.args = tuple(arguments)
    norm_call.replace_all_uses_with(call)
    graph.erase_node(norm_call)


@fx.has_side_effect
def expect_features(x: Tensor, norm: str) -> None:
    """Refuse a call in which a folded batch norm normalizes something else than a linear layer's features."""
    if x.dim() != 2:
        raise PassError(
            f"fold_batch_norm: {norm!r} normalizes axis 1 of a tensor with {x.dim()} axes, which are not the "
            "features of the linear layer before it; take fold_batch_norm out of the policy"
        )
