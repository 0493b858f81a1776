"""Bias correction: the biases of quantized layers take back the mean error that rounding their weights makes."""

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, fx, nn

from fxcompress.errors import PassError
from fxcompress.graph.edit import constant_value, get_tensor, parameter_under
from fxcompress.graph.operators.calls import Operator, argument_node, row_of
from fxcompress.nn.functional import folded_bias
from fxcompress.tune.batch_norm_means import mean_input
from fxcompress.tune.finished import Finished
from fxcompress.tune.left import say_left
from fxcompress.tune.walk import Stretch, Walk
from fxcompress.tune.weights import Tunable, add_to_bias, float_weight, tunables


class _Biased(NamedTuple):
    """Calls of one operator that read one bias; `name` is its parameter, or that of the batch norm folded into it."""

    name: str
    operator: Operator
    calls: tuple[fx.Node, ...]


def bias_correction(
    gm: fx.GraphModule, walk: Walk, finished: Finished, *, statistics: Literal["data", "batch_norm"]
) -> None:
    """Shift the bias of each layer with a quantized weight by the mean error that this makes, channel by channel.

    That is (W - Wq) E[x], summed over the kernel. With `data`, x is what enters the layer in the float model, padding
    and all. With `batch_norm` no data is read: E[x] is what the batch norm before the layer tells; that padding
    brings zeros in is not seen. Layers without a bias get one. Raises PassError where no layer can be corrected, and
    warns of those that are left (Nagel et al. 2019, section 4.2 and appendices B and C).
    """
    add_biases(gm)
    if statistics == "batch_norm":
        _by_batch_norm(gm)
        return
    left: list[str] = []
    count = 0
    for stretch in walk.stretches():
        for one in stretch.tunables:
            found = _biased(call for call in one.calls if call in stretch.part.nodes)
            for biased in found:
                _by_data(gm, stretch, finished, one, biased)
            left += [] if found else [one.layer.name]
            count += 1
    _say_left(left, count, "a bias that is a parameter", "give the layer a bias that is not computed")


def _by_data(gm: fx.GraphModule, stretch: Stretch, finished: Finished, one: Tunable, biased: _Biased) -> None:
    def work() -> None:
        add_to_bias(gm, biased.operator, biased.calls[0], _mean_error(gm, stretch, one, biased))

    finished.once(biased.name, gm, [biased.name], work)


@torch.no_grad()
def _mean_error(gm: fx.GraphModule, stretch: Stretch, one: Tunable, biased: _Biased) -> Tensor:
    """Return the mean of (W - Wq) x for each channel, over all that enters the calls in the float model."""
    operator, total, count = biased.operator, torch.zeros((), dtype=torch.float64), 0
    ((weight,), *_) = stretch.float(one.node)
    error = weight - constant_value(gm, one.node)
    zeros = torch.zeros_like(constant_value(gm, argument_node(biased.calls[0], operator.bias)))
    inputs = [argument_node(call, operator.inputs[0]) for call in biased.calls]
    function = operator.functions[0]
    assert operator.weight is not None
    assert operator.bias is not None
    assert callable(function)  # the normal form's spelling
    for values in stretch.float(*(node for node in inputs if node is not None)):
        for call, x in zip(biased.calls, values, strict=True):
            said: list[Any] = list(call.args)
            said[operator.inputs[0]], said[operator.weight], said[operator.bias] = x, error, zeros
            away = function(*said)
            total = total.to(away.device) + _sums(away, 1 - error.dim())  # the channels lie before the kernel's axes
            count += away.numel() // len(zeros)
    return total / max(count, 1)


def _sums(x: Tensor, axis: int) -> Tensor:
    return x.movedim(axis, 0).flatten(1).sum(1, dtype=torch.float64)


def add_biases(gm: fx.GraphModule) -> None:
    """Give each layer with a quantized weight and no bias one of zeros, the parameter `<layer>.bias`.

    Where the model has that name already it is `<layer>.weight_bias`. Raises PassError where it has that, too.
    """
    made: set[str] = set()
    for one in tunables(gm):
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


def _biased(calls: Iterable[fx.Node]) -> list[_Biased]:
    """Return the calls together that read one bias, without those whose bias is computed."""
    found: dict[str, _Biased] = {}
    for call in calls:
        bias: Any = argument_node(call, row_of(call).bias)
        if bias is not None and bias.target is folded_bias:
            bias = bias.args[0] if bias.args[2] is None else bias.args[2]
        if isinstance(bias, fx.Node) and bias.op == "get_attr":
            name = str(bias.target)
            known = found.get(name, _Biased(name, row_of(call), ()))
            found[name] = known._replace(calls=(*known.calls, call))
    return list(found.values())


def _by_batch_norm(gm: fx.GraphModule) -> None:
    """Correct biases by what batch norms tell; every shift is known before the first beta changes."""
    shifts: list[tuple[_Biased, Tensor]] = []
    left: list[str] = []
    every = tunables(gm)
    for one in every:
        found = [(biased, _shift(gm, one, biased.calls)) for biased in _biased(one.calls)]
        told = [(biased, shift) for biased, shift in found if shift is not None]
        shifts += told
        left += [] if told else [one.layer.name]
    _say_left(left, len(every), "an input whose mean a batch norm tells", "statistics: data does without")
    if not any(shift.any() for _, shift in shifts):
        warnings.warn(f"bias_correction: {_ROUNDED}", stacklevel=3)
    for biased, shift in shifts:
        add_to_bias(gm, biased.operator, biased.calls[0], shift)


def _shift(gm: fx.GraphModule, one: Tunable, calls: Sequence[fx.Node]) -> Tensor | None:
    """Return -sum over the kernel of (Wq - W) E[x], the mean error turned around; None where E[x] is not told."""
    means = [mean_input(gm, call) for call in calls]
    told = [mean for mean in means if mean is not None]
    if not told or len(told) < len(means):
        return None
    weight = float_weight(gm, one)
    with torch.no_grad():
        error = one.quantizer(weight).double() - weight.double()
    blocks = (error.flatten(2).sum(2) if weight.dim() > 2 else error).unflatten(0, (_groups(calls[0]), -1))
    if one.operator.out_axis:
        blocks = blocks.transpose(1, 2)
    inputs = (sum(told[1:], told[0]) / len(told)).view(len(blocks), -1, 1)
    # a transposed convolution spreads its kernel over `stride` outputs for each input
    spread = math.prod(_said(calls[0], "stride")) if one.operator.out_axis and weight.dim() > 2 else 1
    return -(blocks @ inputs).flatten() / spread


def _said(call: fx.Node, argument: str) -> Any:
    return call.args[list(row_of(call).arguments).index(argument)]


def _groups(call: fx.Node) -> int:
    return _said(call, "groups") if "groups" in row_of(call).arguments else 1


def _say_left(left: Sequence[str], count: int, lacking: str, instead: str) -> None:
    what, why = "layers with a quantized weight", f"they lack {lacking}; {instead}"
    say_left("bias_correction", left, count, what=what, done="corrected", why=why)


_ROUNDED = (
    "the weights are levels of their quantizers already, and no error can be told; state it before the step that "
    "rounds them, or statistics: data"
)
