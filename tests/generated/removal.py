"""What a graph computes without some of its channels: NaN stands for what is not there, and is never read."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.nn.modules.batchnorm import _NormBase

_MATRIX_PRODUCTS = (torch.matmul, torch.bmm)
_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_ELEMENTWISE = (torch.add, torch.sub, torch.mul, torch.div, torch.maximum)
_WEIGHT_OF_CHANNELS = {F.group_norm: 2, F.prelu: 1}  # where a weight with one number for each channel stands


class IncoherentError(AssertionError):
    """What is not there meets something that is, or leaves a tensor that is not rectangular."""


class Without(fx.Interpreter):
    """Run a graph whose parameters hold NaN where channels were removed.

    What is computed of NaN is not there either. Sums over channels leave it out; both factors must lack the same.
    Raises IncoherentError naming the node.
    """

    def run_node(self, n: fx.Node) -> Any:
        try:
            result = super().run_node(n)
            if isinstance(result, Tensor):
                _require_rectangular(result)
        except IncoherentError as error:
            raise IncoherentError(f"{error}, at {n.format_node()}") from None
        return result

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in _MATRIX_PRODUCTS:
            return _matrix_product(*args)
        if target in (F.linear, torch.einsum):  # '...i,oi->...o', a linear layer too
            x, weight, bias = args if target is F.linear else (*args[1:], None)
            return _plus(_matrix_product(x, weight.t()), bias, -1)
        if target in (*_CONVOLUTIONS, *_TRANSPOSED):
            return _convolution(target, *args)
        if target in _ELEMENTWISE:
            _require_same(args)
        if target in _WEIGHT_OF_CHANNELS:
            _require_channels(args[0], [args[_WEIGHT_OF_CHANNELS[target]]])
        result = super().call_function(target, args, kwargs)
        if target is torch.sum:
            left = super().call_function(target, (args[0].isfinite(), *args[1:]), kwargs)
            result = super().call_function(target, (args[0].nan_to_num(), *args[1:]), kwargs)
            return result.masked_fill(left == 0, torch.nan)
        return _lacking(result, args[0], 1) if target in (F.pad, torch.zeros_like) else result

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module = self.fetch_attr(target)
        if isinstance(module, _NormBase):
            x = next(iter((*args, *kwargs.values())))
            _require_channels(x, (module.weight, module.bias, module.running_mean, module.running_var))
        return super().call_module(target, args, kwargs)


def _there(x: Tensor, axis: int) -> Tensor:
    """Return for each index along an axis whether something is there."""
    return x.isfinite().movedim(axis, 0).reshape(x.shape[axis], -1).any(1)


def _require(found: Tensor, expected: Tensor, what: str) -> None:
    if not torch.equal(found, expected):
        raise IncoherentError(
            f"{what}: {found.int().tolist()} is there on one side, {expected.int().tolist()} on the other"
        )


def _require_rectangular(x: Tensor) -> None:
    rectangle = torch.ones((), dtype=torch.bool)
    for axis in range(x.dim()):
        rectangle = rectangle & _there(x, axis).view([-1 if at == axis else 1 for at in range(x.dim())])
    if not torch.equal(rectangle.expand(x.shape), x.isfinite()):
        raise IncoherentError("what is left is not rectangular")


def _require_channels(x: Tensor, parameters: Iterable[Tensor | None]) -> None:
    for parameter in parameters:
        if parameter is not None and parameter.numel() > 1:
            _require(_there(parameter, 0), _there(x, 1), "channels")


def _require_same(operands: Iterable[Any]) -> None:
    """Require that operands lack the same, as far as they have the axis; a constant stands for any size."""
    tensors = [one for one in operands if isinstance(one, Tensor) and not (one == one.flatten()[:1]).all()]
    shape = torch.broadcast_shapes(*(one.shape for one in tensors))
    for axis in range(1, len(shape) + 1):
        sides = [_there(one, -axis) for one in tensors if one.dim() >= axis and one.shape[-axis] == shape[-axis]]
        for side in sides[1:]:
            _require(side, sides[0], f"axis -{axis}")


def _lacking(result: Tensor, x: Tensor, axis: int) -> Tensor:
    """Return the result without the channels that `x` lacks."""
    gone = ~_there(x, axis)
    return result.index_fill(axis, gone.nonzero().flatten(), torch.nan)


def _plus(x: Tensor, bias: Tensor | None, axis: int) -> Tensor:
    if bias is None:
        return x
    _require(_there(bias, 0), _there(x, axis), "bias")
    return x + bias.view([-1 if at == axis % x.dim() else 1 for at in range(x.dim())])


def _matrix_product(a: Tensor, b: Tensor) -> Tensor:
    _require(_there(a, -1), _there(b, -2), "factors")
    result = a.nan_to_num() @ b.nan_to_num()
    gone = a.isnan().all(-1, keepdim=True) | b.isnan().all(-2, keepdim=True)
    return result.masked_fill(gone, torch.nan)


def _convolution(target: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
    groups = settings[3]  # behind stride, padding, and dilation or output padding
    by_group = _there(x, 1).view(groups, -1)
    if target in _TRANSPOSED:
        _require(_there(weight, 0), _there(x, 1), "weight and input")
        made = _there(weight.unflatten(0, (groups, -1)).movedim(2, 1).flatten(0, 1), 0)
    else:
        made = _there(weight, 0)
        _require(_there(weight, 1), by_group.any(0), "weight and input")
        _require(made.view(groups, -1).any(1), by_group.any(1), "groups")
    _require(by_group, by_group.any(0) & by_group.any(1, keepdim=True), "channels of the groups")
    result = target(x.nan_to_num(), weight.nan_to_num(), None, *settings)
    return _plus(result.index_fill(1, (~made).nonzero().flatten(), torch.nan), bias, 1)
