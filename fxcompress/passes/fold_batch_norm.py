"""fold_batch_norm: batch norms become part of the weight and bias before them, as a computation on those edges."""

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxcompress.graph.edit import module_of
from fxcompress.graph.operators import Operator, operator_of
from fxcompress.nn.functional import folded_bias, folded_weight
from fxcompress.passes.apply import apply
from fxcompress.policies import FoldBatchNorm


@apply.register
def fold_batch_norm(spec: FoldBatchNorm, gm: fx.GraphModule) -> None:
    """Fold each batch norm whose input is used by nothing else into its convolution or linear layer.

    The parameters and statistics stay under their own names and become edges (Jacob et al. 2018, section 3.2), so that
    the original's state_dict still fits and gradients reach them; the statistics are those of eval mode from here on.
    """
    for node in list(gm.graph.nodes):
        norm = module_of(gm, node)
        operator = operator_of(node.args[0]) if norm is not None and node.args else None
        if isinstance(norm, _BatchNorm) and operator is not None and _foldable(norm, node, operator, gm):
            _fold(norm, node, operator, gm)
    gm.recompile()


def _foldable(norm: nn.Module, node: fx.Node, operator: Operator, gm: fx.GraphModule) -> bool:
    calls = [other for other in gm.graph.nodes if other.op == "call_module" and other.target == node.target]
    return (
        operator.bias is not None
        and norm.running_mean is not None  # without running statistics there is nothing constant to fold
        and len(node.args[0].users) == 1
        and len(calls) == 1
    )


def _fold(norm: _BatchNorm, node: fx.Node, operator: Operator, gm: fx.GraphModule) -> None:
    call: fx.Node = node.args[0]  # type: ignore[assignment]
    name = str(node.target)
    graph = gm.graph
    with graph.inserting_before(call):
        gamma = graph.get_attr(f"{name}.weight") if norm.affine else None
        beta = graph.get_attr(f"{name}.bias") if norm.affine else None
        mean, variance = graph.get_attr(f"{name}.running_mean"), graph.get_attr(f"{name}.running_var")
        weight, bias = call.args[operator.weight], call.args[operator.bias]  # type: ignore[index]
        new_weight = graph.call_function(folded_weight, (weight, gamma, variance, norm.eps, operator.out_axis))
        new_bias = graph.call_function(folded_bias, (bias, gamma, beta, mean, variance, norm.eps))
    new_weight._rename(f"{call.name}_weight_folded")
    new_bias._rename(f"{call.name}_bias_folded")
    arguments = list(call.args)
    arguments[operator.weight], arguments[operator.bias] = new_weight, new_bias  # type: ignore[index,call-overload]
    call.args = tuple(arguments)
    node.replace_all_uses_with(call)
    graph.erase_node(node)
