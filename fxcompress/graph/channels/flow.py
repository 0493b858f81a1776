"""Channel flow: runs a graph with labels beside the values, each node by the rule of its operator."""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils import _pytree as pytree

from fxcompress.graph.channels import mixing, places, rules
from fxcompress.graph.channels.labels import Couplings, Flow, Labels, labels, rows
from fxcompress.graph.channels.rules import Call, Rule, flows_in, values
from fxcompress.graph.edit import get_tensor, module_of
from fxcompress.graph.mode import FollowsMode
from fxcompress.graph.operators.calls import operator_of
from fxcompress.graph.operators.table import OPERATORS
from fxcompress.graph.regions import Region
from fxcompress.nn import Choice, CodebookQuantizer, Mask, Quantizer

_BY_CLASS: dict[str, Rule] = {
    "elementwise": rules.elementwise,
    "movement": rules.movement,
    "pooling": mixing.pooling,
    "reduction": mixing.reduction,
    "softmax": mixing.softmax,
    "contraction": mixing.matmul,
}
_NAMES: dict[Rule, str] = {  # operators without a row, and those whose rule is their own
    rules.same: (
        "contiguous clone detach alias lift_fresh dropout feature_dropout alpha_dropout to type type_as float "
        "double half bfloat16 cpu cuda _to_copy requires_grad_ identity data"
    ),
    rules.creation: (
        "new_zeros new_ones new_full new_empty new_tensor empty_like rand_like randn_like arange zeros ones "
        "full empty linspace tensor rand randn"
    ),
    rules.movement: (
        "unbind t T mT movedim moveaxis swapaxes swapdims flip rot90 expand expand_as broadcast_to repeat tile "
        "view_as reshape_as ravel central_kernel"
    ),
    places.reshaped: "view reshape unflatten _unsafe_view",
    places.indexed: "getitem index",
    places.sliced: "slice select narrow",
    places.selected: "index_select repeat_interleave",
    places.parted: (
        "chunk split tensor_split split_with_sizes hsplit vsplit dsplit unsafe_chunk unsafe_split "
        "unsafe_split_with_sizes"
    ),
    places.shuffled: "channel_shuffle pixel_shuffle pixel_unshuffle",
    places.rolled: "roll",
    places.diagonal: "diagonal",
    places.windows: "unfold",
    rules.padding: "pad constant_pad_nd",
    rules.join: "cat concat concatenate stack",
    rules.elementwise: (
        "neg abs exp expm1 log log1p log2 sqrt rsqrt square pow reciprocal sin cos erf sign floor ceil round "
        "clamp clip clamp_min clamp_max maximum minimum where masked_fill rsub logsigmoid selu celu softsign "
        "hardshrink softshrink tanhshrink threshold rrelu addcmul addcdiv lerp eq ne lt le gt ge logical_and "
        "logical_or logical_not bitwise_and bitwise_or bitwise_not and_ or_ invert isnan isinf nan_to_num "
        "zeros_like ones_like full_like zero fill truediv floordiv floor_divide mod remainder folded_bias quantizer "
        "_weight_norm"
    ),
    mixing.pooling: (
        "interpolate upsample upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d "
        "upsample_bicubic2d upsample_linear1d upsample_trilinear3d adaptive_max_pool1d adaptive_max_pool2d "
        "adaptive_max_pool3d lp_pool1d lp_pool2d fractional_max_pool2d max_pool2d_with_indices"
    ),
    mixing.reduction: "amax amin max min var std norm linalg_vector_norm logsumexp prod any all argmax argmin",
    mixing.softmax: "softmin normalize local_response_norm softmax2d",
    rules.prelu: "prelu",
    places.overwriting: "slice_scatter select_scatter",
    rules.gated: "glu",
    mixing.layer_norm: "layer_norm rms_norm",
    mixing.group_norm: "group_norm",
    mixing.batch_norm: "batch_norm instance_norm",
    mixing.folded_weight: "folded_weight",
    mixing.linear: "linear",
    mixing.embedding: "embedding",
    mixing.convolution: "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
    mixing.matmul: "matmul mm bmm addmm baddbmm",
    mixing.einsum: "einsum",
    mixing.attention: "scaled_dot_product_attention",
}
_RULES = {row.kind: _BY_CLASS.get(row.channels, rules.unknown) for row in OPERATORS} | {
    name: rule for rule, names in _NAMES.items() for name in names.split()
}
_BY_FILE = {  # modules of torch that stay modules, by the file that defines them
    "dropout": rules.same,
    "pooling": mixing.pooling,
    "upsampling": mixing.pooling,
    "pixelshuffle": places.shuffled,
    "channelshuffle": places.shuffled,
    "flatten": rules.movement,
}
_PADDING = {"Reflection": "reflect", "Replication": "replicate", "Circular": "circular"}
_PLACING = (places.reshaped, places.indexed, places.sliced, places.selected, places.parted)
_MOVING = (rules.same, rules.creation, rules.movement, rules.padding, rules.join, *_PLACING)
_SIZE = ("shape", "size", "sym_size")
_OF_ALL_AXES = ("numel", "nelement", "stride", "len", "sym_numel", "sym_stride")
_OF_NO_AXIS = ("dim", "ndim", "ndimension", "dtype", "device", "layout", "is_cuda", "requires_grad", "get_device")


class ParameterAxis(NamedTuple):
    """The channel ids of one axis of a parameter or buffer: `size` of them from `start`."""

    parameter: str
    axis: int
    start: int
    size: int


class Follower:
    """Runs the nodes of a graph, and gathers in `couplings` what they say; `axes` are those of what it has read."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm = gm
        self.couplings = Couplings()
        self.axes: list[ParameterAxis] = []
        self._names = {id(tensor): name for name, tensor in (*gm.named_buffers(), *gm.named_parameters())}
        self._read: dict[int, Flow] = {}

    def parameter(self, tensor: Tensor, name: str = "") -> Flow:
        """Return a parameter or buffer with an id for each index along each axis; ties have one name."""
        if id(tensor) not in self._read:
            name = self._names.get(id(tensor), name)
            ids = self.couplings.new_ids(sum(tensor.shape))
            found: list[Labels] = []
            start = 0
            for axis, size in enumerate(tensor.shape):
                if size > 1:
                    self.axes.append(ParameterAxis(name, axis, int(ids[start]), size))
                    stride = [int(at == axis) for at in range(tensor.dim())]
                    found.append(Labels(ids.as_strided(tensor.shape, stride, start), frozenset({axis}), True))
                start += size
            self._read[id(tensor)] = Flow(tensor.detach(), tuple(found), repr(name))
        return self._read[id(tensor)]

    def follow(self, region: Region, inputs: dict[fx.Node, Any]) -> Any:
        """Run a region on the values of its inputs and return its result, whose channels stay."""
        last_reader = {argument: node for node in region.nodes for argument in node.all_input_nodes}
        env: dict[fx.Node, Any] = {}
        for node in region.nodes:
            self.couplings.node = node.name
            if node in inputs:
                env[node] = _without_labels(inputs[node], f"the input {node.name!r}")
                continue
            args, kwargs = fx.map_arg((node.args, node.kwargs), env.__getitem__)
            if node.op == "output":
                return self._leave(region, args[0])
            env[node] = self._step(node, args, kwargs)
            for argument in node.all_input_nodes:
                if last_reader[argument] is node:
                    del env[argument]
        raise AssertionError("a region ends with its output")

    def _leave(self, region: Region, result: Any) -> Any:
        reason = f"it leaves the graph of {region.path!r}" if region.path else "it is part of the model's output"
        for flow in flows_in(result):
            for one in flow.labels:
                self.couplings.fix(one, reason)
        return values(result)

    def _step(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node.op == "get_attr":
            value = get_tensor(self.gm, str(node.target))
            return self.parameter(value, str(node.target)) if isinstance(value, Tensor) else value
        module = module_of(self.gm, node)
        if module is not None:
            return self._through(module, args, kwargs)
        run: Any = node.target
        if node.op == "call_method":
            run = _method(run)
        elif run in (operator.getitem, getattr) and not isinstance(args[0], Flow):
            return run(args[0], *values(args[1:]))
        return self._apply(Call(self._name(node), run, args, kwargs, run(*values(args), **values(kwargs))))

    def _name(self, node: fx.Node) -> str:
        row = operator_of(node)
        if row is not None:
            return row.kind
        if node.op == "call_method" or node.target is getattr:
            return str(node.target if node.op == "call_method" else node.args[1])
        target: Any = node.target
        return "im2col" if target is F.unfold else getattr(target, "_overloadpacket", target).__name__

    def _apply(self, call: Call) -> Any:
        tensors = [leaf for leaf in pytree.tree_leaves(call.result) if isinstance(leaf, Tensor)]
        if not tensors:
            return self._numbers(call)
        if not call.flows:
            return rules.creation(self.couplings, call)
        rule = _RULES.get(call.name) or _RULES.get(call.name.rstrip("_"), rules.unknown)
        given = {id(flow.value): flow for flow in call.flows}
        if rule is rules.unknown and all(id(tensor) in given for tensor in tensors):
            # stochastic depth in eval mode, a class of outputs
            return pytree.tree_map_only(Tensor, lambda tensor: given[id(tensor)], call.result)
        for flow in flows_in((call.args, call.kwargs)):
            if isinstance(flow.value, Tensor):
                self.couplings.rectangular(flow)
            elif rule not in (*_MOVING, mixing.pooling):  # where a number is a size
                for one in flow.labels:
                    self.couplings.mix(one, (1,))
        return rule(self.couplings, call)

    def _numbers(self, call: Call) -> Any:
        """Return numbers with the labels of the axes whose sizes they come from."""
        if call.name in _OF_NO_AXIS or call.result is None:
            return call.result
        if not call.flows:
            share = places.proportional(call)
            numbers = flows_in((call.args, call.kwargs))
            found = tuple(one._replace(zero=share) for flow in numbers for one in flow.labels)
            return pytree.tree_map(lambda leaf: Flow(leaf, found) if found else leaf, call.result)
        source = call.flows[0]
        if call.name in _SIZE and not isinstance(call.result, int):
            return tuple(Flow(size, _lengths(source, {axis})) for axis, size in enumerate(call.result))
        if call.name in (*_SIZE, *_OF_ALL_AXES):
            axes = rules.axes_of(source.value, None if call.name in _OF_ALL_AXES else call.given(1, "dim"))
            return Flow(call.result, _lengths(source, axes))
        rules.unknown(self.couplings, call)
        return call.result

    def _through(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Return what a module computes, with its parameters among the arguments of an operator of the same kind."""
        call = Call(module._get_name().lower(), module, args, kwargs, module(*values(args), **values(kwargs)))
        if not isinstance(module, Choice):
            return self._of_module(module, call)
        for option in module.branches:  # whichever it will be
            self._of_module(option, replace(call, name=option._get_name().lower()))
        return rules.same(self.couplings, call)

    def _of_module(self, module: nn.Module, call: Call) -> Any:
        if isinstance(module, FollowsMode):
            return self._apply(replace(call, name=module.function.__name__))
        file = type(module).__module__.removeprefix("torch.nn.modules.")
        rule = _BY_FILE.get(file)
        if rule is not None:
            for flow in call.flows:
                self.couplings.rectangular(flow)
            return rule(self.couplings, call)
        called = self._as_operator(module, call, file)
        if called is not None:
            return self._apply(called)
        for flow in self._read_all(chain(module.parameters(), module.buffers())):
            for one in flow.labels:
                self.couplings.fix(one, f"the module of {self.couplings.node!r} ({type(module).__name__}) holds it")
        return rules.unknown(self.couplings, replace(call, name=type(module).__name__))

    def _as_operator(self, module: nn.Module, call: Call, file: str) -> Call | None:
        """Return the call of an operator that takes the module's parameters as arguments; None where none does."""
        source: Any = next(iter((*call.args, *call.kwargs.values())), None)
        name, arguments = call.name, cast(Sequence[Any], ())
        if isinstance(module, _BatchNorm | _InstanceNorm):
            name = "batch_norm" if isinstance(module, _BatchNorm) else "instance_norm"
            tensors = (module.running_mean, module.running_var, module.weight, module.bias)
            arguments = [None if tensor is None else self.parameter(tensor) for tensor in tensors]
        elif isinstance(module, nn.RMSNorm):
            name, arguments = "rms_norm", (module.normalized_shape, *self._read_all(module.parameters()))
        elif isinstance(module, Mask):
            name, arguments = "mul", [self.parameter(module.mask)]
        elif isinstance(module, Quantizer):
            if module.layout.per == "group" or isinstance(module, CodebookQuantizer):
                return None  # groups and levels are made for the channels that there are
            shape = [-1 if axis == module.axis else 1 for axis in range(source.value.dim())]
            read = self._read_all(module.buffers())
            arguments = [flow.reshaped(shape if flow.value.dim() else ()) for flow in read]
        elif isinstance(module, nn.GLU):
            arguments = (module.dim,)
        elif file == "padding":
            kind = next((mode for kind, mode in _PADDING.items() if kind in type(module).__name__), "constant")
            name, arguments = "pad", (module.padding, kind, getattr(module, "value", None))
        elif file != "activation" or name not in _RULES:
            return None
        return replace(call, name=name, args=(source, *arguments), kwargs={})

    def _read_all(self, tensors: Iterable[Tensor]) -> list[Flow]:
        return [self.parameter(tensor) for tensor in tensors]


def _method(name: str) -> Any:
    def call(value: Any, *args: Any, **kwargs: Any) -> Any:
        owner = torch.Size(value) if isinstance(value, tuple) and not hasattr(value, name) else value
        return getattr(owner, name)(*args, **kwargs)

    return call


def _without_labels(value: Any, origin: str) -> Any:
    return pytree.tree_map_only(Tensor, lambda tensor: Flow(tensor, (), origin), value)


def _lengths(source: Flow, axes: Any) -> tuple[Labels, ...]:
    return tuple(labels(rows(one, axes), True) for one in source.labels if one.axes & frozenset(axes))
