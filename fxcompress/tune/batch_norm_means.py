"""Means that batch norms tell: what enters a layer on average, without data."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, fx
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from fxcompress.graph.edit import constant_value, module_of, tensor_under
from fxcompress.graph.operators.calls import argument_node, operator_of
from fxcompress.graph.operators.clamps import clamp_bounds
from fxcompress.nn.channel_split import copied_channels
from fxcompress.nn.functional import folded_bias

_AVERAGES = tuple(f"{kind}{axes}d" for kind in ("avg_pool", "adaptive_avg_pool") for axes in (1, 2, 3))


class _Normal(NamedTuple):
    """A normal distribution for each channel of a tensor whose channels lie on axis 1, or on its `last` one."""

    mean: Tensor
    deviation: Tensor
    last: bool


def mean_input(gm: fx.GraphModule, call: fx.Node) -> Tensor | None:
    """Return the mean of each input channel of a layer's call, float64, where a batch norm before it tells it.

    The norm's output is taken for normal with mean beta and deviation |gamma|, clipped by a relu, relu6 or hardtanh
    (Nagel et al. 2019, appendix C). Average pooling keeps the mean, and channels that `split_channels` copies have
    that of what they are copied from. None where anything else lies between.
    """
    operator = operator_of(call)
    assert operator is not None  # it is a layer
    weight = constant_value(gm, argument_node(call, operator.weight))
    node, flat = _tensor(gm, call, operator.inputs[0]), False
    copied = torch.empty(0, dtype=torch.int64)
    if node is not None and node.target is copied_channels:
        copied = constant_value(gm, node.args[1])
        node = _tensor(gm, node)
    while node is not None and _keeps_means(gm, node):
        flat |= node.target is torch.flatten
        node = _tensor(gm, node)
    limits = None if node is None else clamp_bounds(node)
    if node is not None and limits is not None:
        node = _tensor(gm, node)
    normal = None if node is None else _normal(gm, node)
    if normal is None or (weight.dim() == 2) != (flat or normal.last):  # the channels lie on another axis
        return None
    mean = _clipped(normal, *(limits or (-math.inf, math.inf)))
    if flat:
        mean = mean.repeat_interleave((weight.shape[1 - operator.out_axis] - len(copied)) // len(mean))
    return torch.cat([mean, mean[copied.to(mean.device)]])


def _tensor(gm: fx.GraphModule, node: fx.Node, position: int = 0) -> fx.Node | None:
    """Return the tensor that enters a node, before it was quantized."""
    entering = argument_node(node, position) if node.args else None
    return None if entering is None else tensor_under(gm, entering)


def _keeps_means(gm: fx.GraphModule, node: fx.Node) -> bool:
    operator = operator_of(node)
    averages = operator is not None and operator.kind in _AVERAGES
    flattens = node.target is torch.flatten and node.args[1:] == (1, -1)  # channel after channel
    return averages or flattens or isinstance(module_of(gm, node), _DropoutNd)


def _normal(gm: fx.GraphModule, node: fx.Node) -> _Normal | None:
    """Return how a batch norm distributes what a node gives: the node itself, or one folded into it."""
    operator, module = operator_of(node), module_of(gm, node)
    if isinstance(module, _BatchNorm):
        gamma, beta, like, last = module.weight, module.bias, module.running_mean, False
    else:
        bias = None if operator is None else argument_node(node, operator.bias)
        if operator is None or bias is None or bias.target is not folded_bias:
            return None
        gamma, beta, like = (constant_value(gm, one) for one in bias.args[1:4])
        last = operator.kind == "linear"
    if like is None:  # normalized by the statistics of each batch
        return None
    ones = torch.ones_like(like, dtype=torch.float64)
    mean = 0 * ones if beta is None else beta.detach().double()
    return _Normal(mean, ones if gamma is None else gamma.detach().double().abs(), last)


def _clipped(normal: _Normal, low: float, high: float) -> Tensor:
    """Return E[clip(x, low, high)] = low + E[max(x - low, 0)] - E[max(x - high, 0)] for normal x."""
    mean = normal.mean if low == -math.inf else low + _excess(normal, low)
    return mean if high == math.inf else mean - _excess(normal, high)


def _excess(normal: _Normal, end: float) -> Tensor:
    """Return E[max(x - end, 0)] = (mean - end) cdf(z) + deviation pdf(z), where z = (mean - end) / deviation."""
    above = normal.mean - end
    z = above / normal.deviation.clamp(min=1e-30)  # gamma may be 0
    return above * torch.special.ndtr(z) + normal.deviation * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
