"""Spellings: for each operator of the table, calls that all say the same."""

import operator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten


class Call(NamedTuple):
    """A call of a function, of an ATen operator, or, where that is a name, of a method."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def is_aten(self):
        return isinstance(self.function, torch._ops.OpOverload)

    def __str__(self):
        name = self.function if isinstance(self.function, str) else self.function.__name__
        values = ["x" if isinstance(value, Tensor | list | tuple) else value for value in self.args]
        return f"{name}({', '.join(map(str, [*values, *self.kwargs]))})"


def call(function, *args, **kwargs):
    return Call(function, args, kwargs)


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


X, Y, ROW = random(2, 4), random(2, 4) + 3, random(4)
LINE, IMAGE, CUBE = random(1, 4, 9), random(2, 4, 6, 6), random(1, 4, 5, 5, 5)
BIAS, WEIGHT, TOKENS = random(6), random(6, 4), torch.tensor([[0, 3], [3, 1]])
W1, W2, W3 = random(6, 2, 3), random(6, 2, 3, 3), random(6, 2, 3, 3, 3)  # two groups
T1, T2, T3 = random(4, 3, 2), random(4, 3, 2, 2), random(4, 3, 2, 2, 2)
A, B = random(2, 3, 4), random(2, 4, 5)
Q, K, MASK = random(2, 2, 3, 4), random(2, 2, 5, 4), random(3, 5)
NORM = {"normalized_shape": [4], "weight": ROW, "bias": Y[0], "eps": 1e-3}


def convolution(function, overload, x, weight, axes):
    one, pair = [2] * axes, (1,) * axes
    return [
        call(function, x, weight, BIAS, 2, 1, 1, 2),
        call(function, x, weight, BIAS, one, padding=pair, groups=2),
        call(function, input=x, weight=weight, bias=BIAS, stride=(2,), padding=[1], groups=2),
        call(overload, x, weight, BIAS, one, [1] * axes, [1] * axes, 2),
    ]


def transposed(function, overload, x, weight, axes):
    one = [1] * axes
    return [
        call(function, x, weight, BIAS, 3, 1, 2, 2, 1),
        call(function, x, weight, BIAS, (3,) * axes, padding=1, output_padding=[2], groups=2),
        call(function, input=x, weight=weight, bias=BIAS, stride=[3] * axes, padding=one, output_padding=2, groups=2),
        call(overload, x, weight, BIAS, [3] * axes, one, [2] * axes, 2, one),
    ]


def elementwise(x, *functions, **kwargs):
    return [call(function, x, **kwargs) for function in functions]


def max_pool(function, other, overload, x, axes):
    return [
        call(function, x, 2),
        call(other, x, kernel_size=[2] * axes, stride=None),
        call(other, x, 2, 2, 0, 1, False),
        call(function, input=x, kernel_size=(2,), stride=(2,) * axes, dilation=1),
        call(other, x, 2, ceil_mode=False, return_indices=False),
        call(overload, x, [2] * axes),
        call(overload, x, [2] * axes, []),
    ]


def avg_pool(function, overload, x, axes, **divisor):
    return [
        call(function, x, 3, 2, 1, False, False, **divisor),
        call(function, x, [3] * axes, stride=2, padding=1, count_include_pad=False, **divisor),
        call(function, input=x, kernel_size=3, stride=(2,), padding=(1,) * axes, count_include_pad=False, **divisor),
        call(overload, x, [3] * axes, [2] * axes, [1] * axes, False, False, *divisor.values()),
    ]


def adaptive(function, overload, x, axes):
    size = [2] * axes
    return [call(function, x, 2), call(function, x, size), call(overload, x, size)]


def shaped(function, method, overload, name, x, shape):
    return [
        call(function, x, shape),
        call(function, x, list(shape)),
        call(method, x, *shape),
        call(method, x, shape),
        call(method, x, **{name: list(shape)}),
        call(overload, x, list(shape)),
    ]


def binary(name, function, plain, overload):
    return [call(one, X, Y) for one in (function, plain, name, overload)] + [
        call(function, X, other=Y),
        call(name, X, other=Y),
        call(function, input=X, other=Y),
    ]


def reduced(function, name, overload):
    return [
        call(function, IMAGE, (2, 3), True),
        call(function, IMAGE, dim=[2, 3], keepdim=True, dtype=None),
        call(name, IMAGE, [2, 3], True),
        call(name, IMAGE, dim=(2, 3), keepdim=True),
        call(overload, IMAGE, [2, 3], True),
    ]


def softened(function, other, name, overload):
    return [
        call(function, X, dim=-1, _stacklevel=5, dtype=None),
        call(function, X, -1),
        call(other, X, -1),
        call(other, X, dim=-1, dtype=None),
        call(name, X, -1),
        call(name, X, dim=-1),
        call(overload, X, -1),
        call(overload, X, -1, None),
    ]


# All calls in a list say the same.
SPELLINGS = [
    ("conv1d", convolution(F.conv1d, aten.conv1d.default, LINE, W1, 1)),
    ("conv2d", convolution(F.conv2d, aten.conv2d.default, IMAGE, W2, 2)),
    ("conv3d", convolution(F.conv3d, aten.conv3d.default, CUBE, W3, 3)),
    ("conv2d", [
        call(F.conv2d, IMAGE, W2, None, 1, "same", (1, 2), 2),
        call(F.conv2d, IMAGE, W2, padding="same", dilation=[1, 2], groups=2),
        call(aten.conv2d.padding, IMAGE, W2, None, [1, 1], "same", [1, 2], 2),
    ]),
    ("conv_transpose1d", transposed(F.conv_transpose1d, aten.conv_transpose1d.default, LINE, T1, 1)),
    ("conv_transpose2d", transposed(F.conv_transpose2d, aten.conv_transpose2d.input, IMAGE, T2, 2)),
    ("conv_transpose3d", transposed(F.conv_transpose3d, aten.conv_transpose3d.input, CUBE, T3, 3)),
    ("linear", [
        *(call(function, X, WEIGHT, BIAS) for function in (F.linear, aten.linear.default)),
        call(F.linear, X, weight=WEIGHT, bias=BIAS),
    ]),
    ("linear", [call(F.linear, X, WEIGHT), call(F.linear, X, WEIGHT, None), call(aten.linear.default, X, WEIGHT)]),
    ("addmm", [call(torch.addmm, X[:, :2], X, Y.t()), call(aten.addmm.default, X[:, :2], X, Y.t())]),
    ("embedding", [
        call(F.embedding, TOKENS, WEIGHT, 0),
        call(F.embedding, TOKENS, WEIGHT, padding_idx=0, max_norm=None, sparse=False),
        call(F.embedding, input=TOKENS, weight=WEIGHT, padding_idx=0),
        call(aten.embedding.default, WEIGHT, TOKENS, 0),
        call(aten.embedding.default, WEIGHT, TOKENS, 0, False, False),
    ]),
    ("add", binary("add", torch.add, operator.add, aten.add.Tensor)),
    ("mul", binary("mul", torch.mul, operator.mul, aten.mul.Tensor)),
    ("sub", binary("sub", torch.sub, operator.sub, aten.sub.Tensor)),
    ("div", binary("div", torch.div, operator.truediv, aten.div.Tensor)),
    ("add", [call(operator.add, 2, X), call(operator.add, X, 2), call("add", X, 2), call(aten.add.Tensor, X, 2)]),
    ("mul", [call(operator.mul, 2, X), call(torch.mul, X, 2), call("mul", X, other=2), call(aten.mul.Tensor, X, 2)]),
    ("relu", [
        *elementwise(X, F.relu, torch.relu, "relu", aten.relu.default),
        *(call(F.relu, X, inplace=False), call(F.relu, input=X)),
    ]),
    ("relu6", [call(F.relu6, X), call(F.relu6, X, inplace=False), call(aten.relu6.default, X)]),
    ("hardtanh", [call(F.hardtanh, X, -0.5, 0.5), call(F.hardtanh, X, min_val=-0.5, max_val=0.5, inplace=False),
                  call(aten.hardtanh.default, X, -0.5, 0.5)]),
    ("hardtanh", [call(F.hardtanh, X), call(F.hardtanh, X, -1.0), call(aten.hardtanh.default, X)]),
    ("leaky_relu", [call(F.leaky_relu, X, 0.3), call(F.leaky_relu, X, negative_slope=0.3, inplace=False),
                    call(aten.leaky_relu.default, X, 0.3)]),
    ("elu", [call(F.elu, X, 0.3), call(F.elu, X, alpha=0.3, inplace=False), call(aten.elu.default, X, 0.3)]),
    ("gelu", [call(F.gelu, X, approximate="tanh"), call(aten.gelu.default, X, approximate="tanh")]),
    ("gelu", [call(F.gelu, X), call(F.gelu, input=X, approximate="none"), call(aten.gelu.default, X)]),
    ("silu", [*elementwise(X, F.silu, aten.silu.default), call(F.silu, X, inplace=False)]),
    ("mish", [*elementwise(X, F.mish, aten.mish.default), call(F.mish, X, inplace=False)]),
    ("softplus", [call(F.softplus, X, 2.0, 1.0), call(F.softplus, X, threshold=1.0, beta=2.0),
                  call(aten.softplus.default, X, 2.0, 1.0)]),
    ("hardswish", [*elementwise(X, F.hardswish, aten.hardswish.default), call(F.hardswish, X, inplace=False)]),
    ("hardsigmoid", [*elementwise(X, F.hardsigmoid, aten.hardsigmoid.default), call(F.hardsigmoid, input=X)]),
    ("sigmoid", elementwise(X, torch.sigmoid, F.sigmoid, "sigmoid", aten.sigmoid.default)),
    ("tanh", elementwise(X, torch.tanh, F.tanh, "tanh", aten.tanh.default)),
    ("max_pool1d", max_pool(torch.max_pool1d, F.max_pool1d, aten.max_pool1d.default, LINE, 1)),
    ("max_pool2d", max_pool(torch.max_pool2d, F.max_pool2d, aten.max_pool2d.default, IMAGE, 2)),
    ("max_pool3d", max_pool(torch.max_pool3d, F.max_pool3d, aten.max_pool3d.default, CUBE, 3)),
    ("avg_pool1d", avg_pool(F.avg_pool1d, aten.avg_pool1d.default, LINE, 1)),
    ("avg_pool2d", avg_pool(F.avg_pool2d, aten.avg_pool2d.default, IMAGE, 2, divisor_override=5)),
    ("avg_pool3d", avg_pool(F.avg_pool3d, aten.avg_pool3d.default, CUBE, 3, divisor_override=5)),
    ("adaptive_avg_pool1d", adaptive(F.adaptive_avg_pool1d, aten.adaptive_avg_pool1d.default, LINE, 1)),
    ("adaptive_avg_pool2d", adaptive(F.adaptive_avg_pool2d, aten.adaptive_avg_pool2d.default, IMAGE, 2)),
    ("adaptive_avg_pool3d", adaptive(F.adaptive_avg_pool3d, aten.adaptive_avg_pool3d.default, CUBE, 3)),
    ("adaptive_avg_pool2d", [
        call(F.adaptive_avg_pool2d, IMAGE, (None, 2)),
        call(F.adaptive_avg_pool2d, input=IMAGE, output_size=[None, 2]),
    ]),
    ("flatten", [
        *(call(function, IMAGE, 1) for function in (torch.flatten, "flatten", aten.flatten.using_ints)),
        *(call(torch.flatten, IMAGE, start_dim=1, end_dim=-1), call("flatten", IMAGE, start_dim=1)),
    ]),
    ("unflatten", [
        *(call(function, X, 1, [2, 2]) for function in (torch.unflatten, "unflatten", aten.unflatten.int)),
        call(torch.unflatten, input=X, dim=1, sizes=(2, 2)),
        call("unflatten", X, dim=1, sizes=(2, 2)),
    ]),
    ("reshape", shaped(torch.reshape, "reshape", aten.reshape.default, "shape", X, (4, 2))),
    ("reshape", [call("reshape", X, -1), call(torch.reshape, X, (-1,)), call("reshape", X, [-1])]),
    ("view", shaped(torch.Tensor.view, "view", aten.view.default, "size", X, (4, 2))),
    ("permute", shaped(torch.permute, "permute", aten.permute.default, "dims", IMAGE, (0, 2, 3, 1))),
    ("transpose", [
        *(call(function, X, 0, 1) for function in (torch.transpose, "transpose", aten.transpose.int)),
        *(call(function, X, dim0=0, dim1=1) for function in (torch.transpose, "transpose")),
    ]),
    *(
        (name, [call(function, x, 1), call(function, x, dim=1), call(name, x, 1), call(name, x, dim=1),
                call(overload, x, 1)])
        for name, function, overload, x in (
            ("unsqueeze", torch.unsqueeze, aten.unsqueeze.default, X),
            ("squeeze", torch.squeeze, aten.squeeze.dim, X[:, None]),
        )
    ),
    ("squeeze", [call(torch.squeeze, LINE[None], (0, 1)), call("squeeze", LINE[None], dim=[0, 1]),
                 call(aten.squeeze.dims, LINE[None], [0, 1])]),
    ("chunk", [
        *(call(function, X, 2, 1) for function in (torch.chunk, "chunk", aten.chunk.default)),
        *(call(function, X, chunks=2, dim=1) for function in (torch.chunk, "chunk")),
    ]),
    ("split", [
        *(call(function, X, 3, 1) for function in (torch.split, "split", aten.split.Tensor)),
        *(call(torch.split, X, 3, dim=1), call("split", X, split_size=3, dim=1)),
    ]),
    ("split", [
        *(call(function, X, [3, 1], 1) for function in (torch.split, "split", aten.split_with_sizes.default)),
        call("split", X, (3, 1), dim=1),
    ]),
    ("contiguous", elementwise(X.t(), torch.Tensor.contiguous, "contiguous", aten.contiguous.default)),
    ("pixel_shuffle", [
        *(call(function, IMAGE, 2) for function in (F.pixel_shuffle, aten.pixel_shuffle.default)),
        call(F.pixel_shuffle, input=IMAGE, upscale_factor=2),
    ]),
    ("cat", [
        call(torch.cat, [X, Y], 1),
        call(torch.cat, tensors=(X, Y), dim=1),
        call(torch.concat, (X, Y), dim=1),
        call(aten.cat.default, [X, Y], 1),
    ]),
    ("stack", [
        *(call(function, [X, Y]) for function in (torch.stack, aten.stack.default)),
        call(torch.stack, tensors=(X, Y), dim=0),
    ]),
    ("mean", reduced(torch.mean, "mean", aten.mean.dim)),
    ("mean", [call("mean", X), call(torch.mean, X), call("mean", X, None, False), call(aten.mean.default, X)]),
    ("mean", [call("mean", X, 1), call("mean", X, (1,)), call(torch.mean, X, dim=1), call(aten.mean.dim, X, [1])]),
    ("sum", reduced(torch.sum, "sum", aten.sum.dim_IntList)),
    ("sum", [call("sum", X), call(torch.sum, X), call(torch.sum, X, dim=None), call(aten.sum.default, X)]),
    ("softmax", softened(F.softmax, torch.softmax, "softmax", aten.softmax.int)),
    ("log_softmax", softened(F.log_softmax, torch.log_softmax, "log_softmax", aten.log_softmax.int)),
    ("layer_norm", [
        call(F.layer_norm, X, (4,), ROW, Y[0], 1e-3),
        call(F.layer_norm, X, **NORM),
        call(torch.layer_norm, X, [4], ROW, Y[0], 1e-3),
        call(torch.layer_norm, X, cudnn_enable=False, **NORM),
        call(aten.layer_norm.default, X, [4], ROW, Y[0], 1e-3, True),
    ]),
    ("group_norm", [
        call(F.group_norm, IMAGE, 2, ROW, None, 1e-3),
        call(F.group_norm, IMAGE, num_groups=2, weight=ROW, eps=1e-3),
        call(torch.group_norm, IMAGE, 2, ROW, eps=1e-3),
        call(torch.group_norm, IMAGE, 2, ROW, eps=1e-3, cudnn_enabled=False),
        call(aten.group_norm.default, IMAGE, 2, ROW, None, 1e-3, False),
    ]),
    ("prelu", [call(F.prelu, X, ROW), call(torch.prelu, X, weight=ROW), call(aten.prelu.default, X, ROW)]),
    ("matmul", [
        *(call(one, A, B) for one in (torch.matmul, operator.matmul, "matmul", aten.matmul.default)),
        *(call(one, A, other=B) for one in (torch.matmul, "matmul")),
    ]),
    ("bmm", [call(torch.bmm, A, B), call("bmm", A, mat2=B), call(torch.bmm, input=A, mat2=B),
             call(aten.bmm.default, A, B)]),
    ("scaled_dot_product_attention", [
        call(F.scaled_dot_product_attention, Q, K, K, MASK, scale=0.3),
        call(F.scaled_dot_product_attention, query=Q, key=K, value=K, attn_mask=MASK, dropout_p=0.0, scale=0.3),
        call(aten.scaled_dot_product_attention.default, Q, K, K, MASK, 0.0, False, scale=0.3),
    ]),
    ("scaled_dot_product_attention", [
        call(F.scaled_dot_product_attention, Q, K, K, None, 0.0, True),
        call(F.scaled_dot_product_attention, Q, K, value=K, is_causal=True),
        call(aten.scaled_dot_product_attention.default, Q, K, K, is_causal=True),
    ]),
]  # fmt: skip
