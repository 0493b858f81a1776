"""Bias correction: the biases of quantized layers take back the mean error that rounding their weights makes."""

import math
import warnings
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, fx, nn

from fxcompress.errors import PassError
from fxcompress.graph import layers
from fxcompress.graph.edit import constant_value, get_tensor, parameter_under
from fxcompress.graph.operators.calls import argument_node, row_of
from fxcompress.graph.ties import memory, readers
from fxcompress.nn.functional import folded_bias
from fxcompress.tune.batch_norm_means import mean_input
from fxcompress.tune.finished import Finished
from fxcompress.tune.left import say_left
from fxcompress.tune.walk import Stretch, Walk
from fxcompress.tune.weights import QuantizedWeight, add_to_bias, float_weight, quantized_weights


class _Bias(NamedTuple):
    """A bias that can be corrected: its parameter, or that of the batch norm folded into it, and all that read it."""

    name: str
    readers: dict[fx.Node, QuantizedWeight]  # by call


class _Errors(NamedTuple):
    """The errors of what calls of one layer give, summed for each channel over so many `places`."""

    call: fx.Node
    total: Tensor
    places: int


def bias_correction(
    gm: fx.GraphModule, walk: Walk, finished: Finished, *, statistics: Literal["data", "batch_norm"]
) -> None:
    """Shift the bias of each layer with a quantized weight by the mean error that this makes, channel by channel.

    That is (W - Wq) E[x], summed over the kernel. With `data`, x is what enters the layer in the float model, padding
    and all. With `batch_norm` no data is read: E[x] is what the batch norm before the layer tells; that padding
    brings zeros in is not seen. Layers without a bias get one; what several calls read is shifted by the mean over
    all of them. Raises PassError where no layer can be corrected, and warns of those that are left (Nagel et al.
    2019, section 4.2 and appendices B and C).
    """
    add_biases(gm)
    if statistics == "batch_norm":
        _by_batch_norm(gm)
    else:
        _by_data(gm, walk, finished)


def _biases(gm: fx.GraphModule, outside: Collection[Any] = ()) -> list[_Bias]:
    """Return the biases that are read by layers with a quantized weight only, and are not computed.

    `outside` are the tensors, by memory, that code outside of the graph reads.
    """
    found: dict[Any, _Bias] = {}
    for one in quantized_weights(gm):
        for call in one.calls:
            name = _bias_parameter(call)
            if name is not None:
                found.setdefault(memory(get_tensor(gm, name)), _Bias(name, {})).readers[call] = one
    read = readers(gm)
    inside = [(bias, read[key]) for key, bias in found.items() if key not in outside]
    return [bias for bias, nodes in inside if all(node in bias.readers for node in nodes)]


def _bias_parameter(call: fx.Node) -> str | None:
    """Return the parameter to which the bias of a call adds, None where the bias is computed."""
    bias: Any = argument_node(call, row_of(call).bias)
    if bias is not None and bias.target is folded_bias:
        bias = bias.args[0] if bias.args[2] is None else bias.args[2]
    return str(bias.target) if isinstance(bias, fx.Node) and bias.op == "get_attr" else None


def _by_data(gm: fx.GraphModule, walk: Walk, finished: Finished) -> None:
    """Correct biases part by part; one that several parts read in the last of them."""
    biases = _biases(gm, walk.outside)
    _say_left(
        gm, biases, "a bias of their own", "give the layer one that is not computed and that nothing else reads"
    )
    waiting = {bias.name: set(bias.readers) for bias in biases}
    known: dict[str, list[_Errors]] = {bias.name: [] for bias in biases}
    for stretch in walk.stretches():
        nodes = set(stretch.part.nodes)
        for bias in biases:
            here = [call for call in bias.readers if call in nodes]
            waiting[bias.name].difference_update(here)
            if here and waiting[bias.name]:
                known[bias.name] += _errors(stretch, bias, here)
            elif here:
                work = partial(_correct_here, stretch, bias, here, known[bias.name])
                finished.once(bias.name, gm, [bias.name], work)


def _correct_here(stretch: Stretch, bias: _Bias, here: Sequence[fx.Node], before: Sequence[_Errors]) -> None:
    _correct(stretch.gm, [*before, *_errors(stretch, bias, here)])


def _correct(gm: fx.GraphModule, errors: Sequence[_Errors]) -> None:
    """Add the mean of the errors of all that reads a bias."""
    places = max(sum(one.places for one in errors), 1)
    for one in errors:
        add_to_bias(gm, row_of(one.call), one.call, one.total / places)


def _errors(stretch: Stretch, bias: _Bias, here: Sequence[fx.Node]) -> list[_Errors]:
    weights = dict.fromkeys(bias.readers[call] for call in here)
    return [_errors_of(stretch, one, [call for call in here if bias.readers[call] == one]) for one in weights]


@torch.no_grad()
def _errors_of(stretch: Stretch, one: QuantizedWeight, calls: Sequence[fx.Node]) -> _Errors:
    """Return the sum of (W - Wq) x for each channel, over all that enters some calls in the float model."""
    gm, operator, places = stretch.gm, one.operator, 0
    quantized = next(node for node in one.nodes if node in stretch.part.constants)
    ((weight,), *_) = stretch.float(quantized)
    error = weight - constant_value(gm, quantized)
    bias = constant_value(gm, argument_node(calls[0], operator.bias))
    total = torch.zeros_like(bias, dtype=torch.float64)
    inputs = [argument_node(call, operator.inputs[0]) for call in calls]
    function = operator.functions[0]
    assert operator.weight is not None
    assert operator.bias is not None
    assert callable(function)  # the normal form's spelling
    for values in stretch.float(*(node for node in inputs if node is not None)):
        for call, x in zip(calls, values, strict=True):
            said: list[Any] = list(call.args)
            said[operator.inputs[0]], said[operator.weight], said[operator.bias] = x, error, torch.zeros_like(bias)
            away = function(*said)
            total += _sums(away, 1 - error.dim())  # the channels lie before the kernel's axes
            places += away.numel() // len(bias)
    return _Errors(calls[0], total, places)


def _sums(x: Tensor, axis: int) -> Tensor:
    return x.movedim(axis, 0).flatten(1).sum(1, dtype=torch.float64)


def add_biases(gm: fx.GraphModule) -> None:
    """Give each layer with a quantized weight and no bias one of zeros, the parameter `<layer>.bias`.

    Where the model has that name already it is `<layer>.weight_bias`. Raises PassError where it has that, too.
    """
    made: set[str] = set()
    for one in quantized_weights(gm):
        for call in one.calls:
            operator = row_of(call)
            assert operator.bias is not None
            bias = argument_node(call, operator.bias)
            if bias is None:
                call.update_arg(operator.bias, _zero_bias(gm, call, made, before=call))
            elif bias.target is folded_bias and bias.args[0] is None and bias.args[2] is None:
                bias.update_arg(0, _zero_bias(gm, call, made, before=bias))
    gm.recompile()


def _zero_bias(gm: fx.GraphModule, call: fx.Node, made: set[str], before: fx.Node) -> fx.Node:
    weight = parameter_under(gm, argument_node(call, row_of(call).weight))
    assert weight is not None
    path, _, leaf = weight.rpartition(".")
    owner = gm.get_submodule(path)
    names = {(f"{path}.{name}" if path else name): name for name in _bias_names(leaf)}
    free = [name for name in names if name in made or getattr(owner, names[name], None) is None]
    if not free:
        raise PassError(
            f"{call.name!r} can have no bias to correct: the model has the name {list(names)[-1]!r} already"
        )
    if free[0] not in made:
        like = get_tensor(gm, weight)
        zeros = like.new_zeros(_groups(call) * like.shape[1] if row_of(call).out_axis else len(like))
        owner.register_parameter(names[free[0]], nn.Parameter(zeros, requires_grad=like.requires_grad))
        made.add(free[0])
    with gm.graph.inserting_before(before):
        return gm.graph.get_attr(free[0])


def _bias_names(leaf: str) -> list[str]:
    return ["bias", "weight_bias"] if leaf == "weight" else [f"{leaf}_bias"]


def _by_batch_norm(gm: fx.GraphModule) -> None:
    """Correct biases by what batch norms tell; every shift is known before the first beta changes."""
    told = [(bias, errors) for bias in _biases(gm) if (errors := _told(gm, bias)) is not None]
    lacking = "an input whose mean a batch norm tells, or a bias of their own"
    _say_left(gm, [bias for bias, _ in told], lacking, "statistics: data does without batch norms")
    if not any(one.total.any() for _, errors in told for one in errors):
        warnings.warn(f"bias_correction: {_ROUNDED}", stacklevel=3)
    for _, errors in told:
        _correct(gm, errors)


def _told(gm: fx.GraphModule, bias: _Bias) -> list[_Errors] | None:
    """Return the expected error of each call that reads a bias; None where that of one is not told."""
    found = []
    for call, one in bias.readers.items():
        mean = mean_input(gm, call)
        if mean is None:
            return None
        found.append(_Errors(call, _expected(gm, one, call, mean), 1))
    return found


def _expected(gm: fx.GraphModule, one: QuantizedWeight, call: fx.Node, mean: Tensor) -> Tensor:
    """Return sum over the kernel of (W - Wq) E[x] for each output channel."""
    weight = float_weight(gm, one)
    with torch.no_grad():
        error = weight.double() - one.quantizer(weight).double()
    blocks = (error.flatten(2).sum(2) if weight.dim() > 2 else error).unflatten(0, (_groups(call), -1))
    if one.operator.out_axis:
        blocks = blocks.transpose(1, 2)
    # a transposed convolution spreads its kernel over `stride` outputs for each input
    spread = math.prod(_said(call, "stride")) if one.operator.out_axis and weight.dim() > 2 else 1
    return (blocks @ mean.view(len(blocks), -1, 1)).flatten() / spread


def _said(call: fx.Node, argument: str) -> Any:
    return call.args[list(row_of(call).arguments).index(argument)]


def _groups(call: fx.Node) -> int:
    return _said(call, "groups") if "groups" in row_of(call).arguments else 1


def _say_left(gm: fx.GraphModule, biases: Iterable[_Bias], lacking: str, instead: str) -> None:
    corrected = {call for bias in biases for call in bias.readers}
    quantized = {call for one in quantized_weights(gm) for call in one.calls}
    found = [layer for layer in layers(gm) if not quantized.isdisjoint(layer.calls)]
    why = f"they lack {lacking}; {instead}"
    left = {layer.name: why for layer in found if not corrected.issuperset(layer.calls)}
    say_left("bias_correction", left, len(found), what="layers with a quantized weight", done="corrected")


_ROUNDED = (
    "the weights are levels of their quantizers already, and no error can be told; state it before the step that "
    "rounds them, or statistics: data"
)
