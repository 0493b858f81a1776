"""The operator table: what fxcompress knows of each operator. Adding an operator is one row."""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from fxcompress.graph.operators.row import SAME_AS_KERNEL, Operator, per_column, per_input, per_output

_CONVOLUTION = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
_TRANSPOSED = {"bias": None, "stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}
_EMBEDDING = {"padding_idx": None, "max_norm": None, "norm_type": 2.0, "scale_grad_by_freq": False, "sparse": False}
_MAX_POOL = {"kernel_size": ..., "stride": SAME_AS_KERNEL, "padding": 0, "dilation": 1, "ceil_mode": False}
_AVG_POOL = {
    "kernel_size": ...,
    "stride": SAME_AS_KERNEL,
    "padding": 0,
    "ceil_mode": False,
    "count_include_pad": True,
}
_ATTENTION = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}


def _convolution(axes: int, *functions: Callable[..., Any]) -> Operator:
    return Operator(
        kind=f"conv{axes}d",
        functions=functions,
        arguments={"input": ..., "weight": ...} | _CONVOLUTION,
        inputs=(0,),
        weight=1,
        macs=per_output,
        integer=True,
        per_axis=dict.fromkeys(("stride", "padding", "dilation"), axes),
        channels="product",
    )


def _transposed(axes: int, *functions: Callable[..., Any]) -> Operator:
    return Operator(
        kind=f"conv_transpose{axes}d",
        functions=functions,
        arguments={"input": ..., "weight": ...} | _TRANSPOSED,
        inputs=(0,),
        weight=1,
        out_axis=1,
        macs=per_input,
        per_axis=dict.fromkeys(("stride", "padding", "output_padding", "dilation"), axes),
        channels="product",
    )


def _pool(kind: str, axes: int, arguments: dict[str, Any], *functions: Callable[..., Any]) -> Operator:
    per_axis = dict.fromkeys(("kernel_size", "stride", "padding", "dilation"), axes)
    return Operator(kind, functions, {"input": ...} | arguments, per_axis=per_axis, channels="pooling")


def _adaptive(kind: str, axes: int, function: Callable[..., Any]) -> Operator:
    arguments = {"input": ..., "output_size": ...}
    return Operator(kind, (function,), arguments, per_axis={"output_size": axes}, channels="pooling")


def _unary(kind: str, *functions: Callable[..., Any] | str, **arguments: Any) -> Operator:
    return Operator(kind, functions, {"input": ...} | arguments, channels="elementwise")


def _binary(kind: str, *functions: Callable[..., Any] | str, commutative: bool = False) -> Operator:
    arguments = {"input": ..., "other": ...}
    return Operator(kind, functions, arguments, channels="elementwise", commutative=commutative)


def _movement(kind: str, *functions: Callable[..., Any] | str, spread: str = "", **arguments: Any) -> Operator:
    return Operator(kind, functions, {"input": ...} | arguments, spread=spread, channels="movement")


def _reduction(kind: str, *functions: Callable[..., Any] | str) -> Operator:
    arguments = {"input": ..., "dim": None, "keepdim": False}
    return Operator(kind, functions, arguments, per_axis={"dim": 1}, channels="reduction")


OPERATORS = (
    _convolution(1, F.conv1d, torch.conv1d),
    _convolution(2, F.conv2d, torch.conv2d),
    _convolution(3, F.conv3d, torch.conv3d),
    _transposed(1, F.conv_transpose1d, torch.conv_transpose1d),
    _transposed(2, F.conv_transpose2d, torch.conv_transpose2d),
    _transposed(3, F.conv_transpose3d, torch.conv_transpose3d),
    Operator(
        kind="linear",
        functions=(F.linear,),
        arguments={"input": ..., "weight": ..., "bias": None},
        inputs=(0,),
        weight=1,
        macs=per_output,
        integer=True,
        channels="product",
    ),
    Operator(
        kind="addmm",
        functions=(torch.addmm,),
        arguments={"bias": ..., "input": ..., "weight": ...},
        inputs=(1,),
        weight=2,
        out_axis=1,
        macs=per_column,
        channels="product",
    ),
    Operator(
        kind="embedding",
        functions=(F.embedding,),
        arguments={"input": ..., "weight": ...} | _EMBEDDING,
        weight=1,
        aten_order=("weight", "input", "padding_idx", "scale_grad_by_freq", "sparse"),
        channels="product",
    ),
    Operator(
        kind="add",
        functions=(torch.add, operator.add, "add"),
        arguments={"input": ..., "other": ...},
        inputs=(0, 1),
        channels="elementwise",
        commutative=True,
    ),
    _binary("mul", torch.mul, operator.mul, "mul", commutative=True),
    _binary("sub", torch.sub, operator.sub, "sub"),
    _binary("div", torch.div, operator.truediv, "div"),
    _unary("relu", F.relu, torch.relu, "relu"),
    _unary("relu6", F.relu6),
    _unary("hardtanh", F.hardtanh, min_val=-1.0, max_val=1.0),
    _unary("leaky_relu", F.leaky_relu, negative_slope=0.01),
    _unary("elu", F.elu, alpha=1.0),
    Operator("gelu", (F.gelu,), {"input": ..., "approximate": "none"}, ("approximate",), channels="elementwise"),
    _unary("silu", F.silu),
    _unary("mish", F.mish),
    _unary("softplus", F.softplus, beta=1.0, threshold=20.0),
    _unary("hardswish", F.hardswish),
    _unary("hardsigmoid", F.hardsigmoid),
    _unary("sigmoid", torch.sigmoid, F.sigmoid, "sigmoid"),
    _unary("tanh", torch.tanh, F.tanh, "tanh"),
    _pool("max_pool1d", 1, _MAX_POOL, torch.max_pool1d, F.max_pool1d),
    _pool("max_pool2d", 2, _MAX_POOL, torch.max_pool2d, F.max_pool2d),
    _pool("max_pool3d", 3, _MAX_POOL, torch.max_pool3d, F.max_pool3d),
    _pool("avg_pool1d", 1, _AVG_POOL, F.avg_pool1d),
    _pool("avg_pool2d", 2, _AVG_POOL | {"divisor_override": None}, F.avg_pool2d),
    _pool("avg_pool3d", 3, _AVG_POOL | {"divisor_override": None}, F.avg_pool3d),
    _adaptive("adaptive_avg_pool1d", 1, F.adaptive_avg_pool1d),
    _adaptive("adaptive_avg_pool2d", 2, F.adaptive_avg_pool2d),
    _adaptive("adaptive_avg_pool3d", 3, F.adaptive_avg_pool3d),
    _movement("flatten", torch.flatten, "flatten", start_dim=0, end_dim=-1),
    _movement("unflatten", torch.unflatten, "unflatten", dim=..., sizes=...),
    _movement("reshape", torch.reshape, "reshape", spread="shape", shape=...),
    _movement("view", torch.Tensor.view, "view", spread="size", size=...),
    _movement("permute", torch.permute, "permute", spread="dims", dims=...),
    _movement("transpose", torch.transpose, "transpose", dim0=..., dim1=...),
    _movement("unsqueeze", torch.unsqueeze, "unsqueeze", dim=...),
    _movement("squeeze", torch.squeeze, "squeeze", dim=...),
    _movement("chunk", torch.chunk, "chunk", chunks=..., dim=0),
    Operator(
        kind="split",
        functions=(torch.split, "split"),
        arguments={"input": ..., "split_size": ..., "dim": 0},
        aten=("split", "split_with_sizes"),
        channels="movement",
    ),
    _movement("contiguous", torch.Tensor.contiguous, "contiguous"),
    _movement("pixel_shuffle", F.pixel_shuffle, upscale_factor=...),
    Operator("cat", (torch.cat, torch.concat), {"tensors": ..., "dim": 0}, channels="movement"),
    Operator("stack", (torch.stack,), {"tensors": ..., "dim": 0}, channels="movement"),
    _reduction("mean", torch.mean, "mean"),
    _reduction("sum", torch.sum, "sum"),
    Operator(
        kind="softmax",
        functions=(F.softmax, torch.softmax, "softmax"),
        arguments={"input": ..., "dim": ...},
        aten_order=("input", "dim", "dtype"),
        channels="softmax",
    ),
    Operator(
        kind="log_softmax",
        functions=(F.log_softmax, torch.log_softmax, "log_softmax"),
        arguments={"input": ..., "dim": ...},
        aten_order=("input", "dim", "dtype"),
        channels="softmax",
    ),
    Operator(
        kind="layer_norm",
        functions=(F.layer_norm, torch.layer_norm),
        arguments={"input": ..., "normalized_shape": ..., "weight": None, "bias": None, "eps": 1e-5},
        aten_order=("input", "normalized_shape", "weight", "bias", "eps", "cudnn_enable"),
        channels="normalization",
    ),
    Operator(
        kind="group_norm",
        functions=(F.group_norm, torch.group_norm),
        arguments={"input": ..., "num_groups": ..., "weight": None, "bias": None, "eps": 1e-5},
        aten_order=("input", "num_groups", "weight", "bias", "eps", "cudnn_enable"),
        channels="normalization",
    ),
    Operator("prelu", (F.prelu, torch.prelu), {"input": ..., "weight": ...}, channels="elementwise"),
    Operator(
        kind="matmul",
        functions=(torch.matmul, operator.matmul, "matmul"),
        arguments={"input": ..., "other": ...},
        channels="contraction",
    ),
    Operator("bmm", (torch.bmm, "bmm"), {"input": ..., "mat2": ...}, channels="contraction"),
    Operator(
        kind="scaled_dot_product_attention",
        functions=(F.scaled_dot_product_attention,),
        arguments={"query": ..., "key": ..., "value": ...} | _ATTENTION,
        keywords=("scale", "enable_gqa"),
        channels="contraction",
    ),
)
