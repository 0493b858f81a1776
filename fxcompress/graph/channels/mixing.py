"""Channel rules of operators that mix elements: products, attention, pooling, reductions and normalizations."""

import re
from collections.abc import Sequence
from dataclasses import replace
from string import ascii_letters
from typing import Any

from torch import Tensor

from fxcompress.graph.channels.labels import Couplings, Flow, Labels, core, labels
from fxcompress.graph.channels.rules import Call, axes_of, unknown


def linear(c: Couplings, call: Call) -> Any:
    """Multiply the last axis by a weight: its inputs are what it reads, its outputs channels of their own."""
    source, weight, bias = _operands(call)
    if weight.value.dim() != 2:
        return unknown(c, call)
    last = source.value.dim() - 1
    columns = [c.along(one, frozenset(range(last))) if last in one.axes else one for one in source.labels]
    c.is_channel(weight)
    batch = ascii_letters[:last]
    equation = f"{batch}y,zy->{batch}z"
    found = c.contracted(replace(source, labels=tuple(columns)), weight, equation, call.result.shape)
    return call.made(found if bias is None else _plus(c, call.result, found, bias))


def _operands(call: Call) -> Sequence[Any]:
    return [call.given(position, name) for position, name in enumerate(("input", "weight", "bias"))]


def _plus(c: Couplings, value: Tensor, found: Sequence[Labels], other: Flow) -> tuple[Labels, ...]:
    return c.combined([Flow(value, tuple(found)), other], value.shape, "all")


def convolution(c: Couplings, call: Call) -> Any:
    """Multiply the channels around each place by a weight, in groups of channels."""
    source, weight, bias = _operands(call)
    groups = call.given(6, "groups", 1)
    transposed = "transpose" in call.name
    axis = source.value.dim() - weight.value.dim() + 1  # 0 where there is no batch
    read, whole, of_group = c.vector(source, axis), c.vector(weight, 0), c.vector(weight, 1)
    if groups == 1:
        reads, made = (whole, of_group) if transposed else (of_group, whole)
        c.is_channel(whole)
        c.is_channel(of_group)
        c.combined([read, reads], read.value.shape)
    else:
        made = _in_groups(c, read, whole, of_group, groups, transposed)
    if bias is not None:
        made = replace(made, labels=_plus(c, made.value, made.labels, bias))
    shape = call.result.shape
    spread = made.moved(lambda x: x.view([-1 if at == axis else 1 for at in range(len(shape))]).expand(shape))
    return call.made([*spread.labels, *_beside(c, source, axis, shape)])


def _beside(c: Couplings, source: Flow, axis: int, shape: Sequence[int]) -> list[Labels]:
    """Return the labels that are on the batch axis alone."""
    around = frozenset(range(axis, len(shape)))
    others = [one for one in source.labels if axis not in one.axes]
    kept = c.across(others, around, f"{c.node!r} mixes it with what lies around")
    return [one._replace(ids=core(one.ids, one.axes).expand(tuple(shape))) for one in kept]


def _in_groups(c: Couplings, read: Flow, whole: Flow, of_group: Flow, groups: int, transposed: bool) -> Flow:
    """Couple what a convolution in groups reads and makes, and return what it makes.

    The weight's first axis counts all channels (outputs, or inputs where it is transposed), its second those of one
    group. Whole groups go, or the same channels of each group: as what is read already does, else whatever is finer.
    """

    def grid(flow: Flow) -> Flow:
        return flow.reshaped((groups, -1))

    def repeated(flow: Flow) -> Flow:
        return flow.moved(lambda x: x.view(1, -1).expand(groups, -1).reshape(-1))

    c.is_channel(whole)
    size = read.value.shape[0] // groups
    varies = frozenset[int]().union(*(one.axes for one in grid(read).labels))
    made_size = of_group.value.shape[0] if transposed else whole.value.shape[0] // groups
    if varies == {0} or (groups >= size and varies != {1}):
        both = c.combined([c.vector(grid(whole), 0), c.vector(grid(read), 0)], (groups,), "first")
        first = grid(whole).moved(lambda x: x[:, 0])
        return replace(first, labels=both).moved(lambda x: x.view(-1, 1).expand(-1, made_size).reshape(-1))
    c.is_channel(of_group)
    if transposed:
        c.combined([read, whole], read.value.shape)
        c.vector(grid(read), 1)
        return repeated(of_group)
    c.combined([c.vector(grid(read), 1), of_group], (size,))
    if made_size == 1:  # no group can lose the one that it makes
        whole = replace(whole, labels=tuple(c.along(one, frozenset({0})) for one in whole.labels))
    return repeated(c.vector(grid(whole), 1))


def embedding(c: Couplings, call: Call) -> Any:
    """Pick rows of a weight by index; its columns are channels, its rows stay."""
    index, weight, _ = _operands(call)
    for one in (*index.labels, *(one for one in weight.labels if 0 in one.axes)):
        c.fix(one, f"{c.node!r} picks by index")
    columns = c.vector(weight, 1)
    c.is_channel(columns)
    return call.made(columns.moved(lambda x: x.expand(call.result.shape)).labels)


def matmul(c: Couplings, call: Call) -> Any:
    """Multiply matrices, with or without batch axes; `addmm` and `baddbmm` add the product to something."""
    *added, a, b = call.flows
    ranks = a.value.dim(), b.value.dim()
    batch = ascii_letters[: max(*ranks, 2) - 2]
    left = batch[len(batch) - max(ranks[0] - 2, 0) :] + ("xy" if ranks[0] > 1 else "y")
    right = batch[len(batch) - max(ranks[1] - 2, 0) :] + ("yz" if ranks[1] > 1 else "y")
    out = batch + "x" * (ranks[0] > 1) + "z" * (ranks[1] > 1)
    found = _product(c, a, b, f"{left},{right}->{out}", call.result.shape)
    return call.made(_plus(c, call.result, found, added[0]) if added else found)


def einsum(c: Couplings, call: Call) -> Any:
    """Sum products of two tensors, each axis named by a letter."""
    inputs, _, out = str(call.args[0]).replace(" ", "").partition("->")
    letters = inputs.split(",")
    if len(call.flows) != 2 or not out or any(len({*part} - {"."}) < len(part.replace(".", "")) for part in letters):
        return unknown(c, call)
    a, b = call.flows
    free = [letter for letter in ascii_letters if letter not in inputs]
    ranks = [flow.value.dim() - len(part.replace(".", "")) for flow, part in zip((a, b), letters, strict=True)]
    batch = ["".join(free[max(ranks) - rank : max(ranks)]) for rank in (*ranks, max(ranks))]
    left, right, out = (part.replace("...", many) for part, many in zip((*letters, out), batch, strict=True))
    return call.made(_product(c, a, b, f"{left},{right}->{out}", call.result.shape))


def _product(c: Couplings, a: Flow, b: Flow, equation: str, shape: Sequence[int]) -> tuple[Labels, ...]:
    c.is_channel(a)
    c.is_channel(b)
    return c.contracted(a, b, equation, shape)


def attention(c: Couplings, call: Call) -> Any:
    """Weigh values by what queries and keys have in common."""
    query, key, value = (call.given(position, name) for position, name in enumerate(("query", "key", "value")))
    mask = call.given(3, "attn_mask")
    if call.given(8, "enable_gqa", False):
        times = query.value.shape[-3] // key.value.shape[-3]
        key, value = (flow.moved(lambda x: x.repeat_interleave(times, -3)) for flow in (key, value))
    if call.given(7, "scale") is None:  # it is the root of the length
        last = frozenset({query.value.dim() - 1})
        for one in query.labels:
            if one.axes & last:
                c.mix(one, last)
    batch = ascii_letters[: query.value.dim() - 2]
    shape = (*query.value.shape[:-1], key.value.shape[-2])
    found = c.contracted(query, key, f"{batch}xy,{batch}zy->{batch}xz", shape)
    weights = Flow(query.value.new_zeros(()).expand(shape), found)
    if mask is not None:
        weights = replace(weights, labels=c.combined([weights, mask], shape))
    last = frozenset({len(shape) - 1})
    weights = replace(weights, labels=tuple(related(c, one, last)._replace(zero=False) for one in weights.labels))
    return call.made(c.contracted(weights, value, f"{batch}xz,{batch}zw->{batch}xw", call.result.shape))


def pooling(c: Couplings, call: Call) -> Any:
    """Compute each channel on its own from what lies around an element."""
    source = call.flows[0]
    named = re.search(r"([123])d", call.name)
    spatial = frozenset(range(source.value.dim() - int(named[1]) if named else 2, source.value.dim()))
    found = c.across(source.labels, spatial, f"{c.node!r} mixes it with what lies around")
    return call.made([one._replace(ids=core(one.ids, one.axes).expand(call.first.shape)) for one in found])


def reduction(c: Couplings, call: Call) -> Any:
    """Reduce along axes; channels on these alone end there."""
    source = call.flows[0]
    position = 2 if "norm" in call.name else 1
    axes = axes_of(source.value, call.given(position, "dim", call.kwargs.get("axis")))
    found = []
    for one in source.labels:
        if one.axes and one.axes <= axes:
            if not (one.zero and _adds_up(call)):
                c.mix(one, one.axes)
            continue
        ids = c.along(one, axes).ids
        keeps = [0 if axis in axes else slice(None) for axis in range(ids.dim())]
        found.append(labels(ids[tuple(keeps)].reshape(call.first.shape), one.zero and call.name in ("sum", "mean")))
    return call.made(found)


def _adds_up(call: Call) -> bool:
    """Return whether zeros add nothing, as to a sum or to a norm that is no minimum."""
    order = call.given(1, "p", call.kwargs.get("ord", 2))
    return call.name == "sum" or ("norm" in call.name and not (isinstance(order, int | float) and order < 0))


def softmax(c: Couplings, call: Call) -> Any:
    """Set elements along axes in relation to one another, all of a channel's or those of several channels."""
    source, position = call.flows[0], {"normalize": 2, "local_response_norm": 5}.get(call.name, 1)
    dim = call.given(position, "dim", getattr(call.run, "dim", None))
    if dim is None:  # softmax chooses by the rank
        among = {"normalize": 1, "local_response_norm": 1, "softmax2d": -3}
        dim = among.get(call.name, int(source.value.dim() not in (0, 1, 3)))
    axes = axes_of(source.value, dim)
    if call.name == "normalize" and _adds_up(call):
        return call.made([one if one.zero and one.axes <= axes else related(c, one, axes) for one in source.labels])
    return call.made([related(c, one, axes)._replace(zero=False) for one in source.labels])


def related(c: Couplings, one: Labels, axes: frozenset[int]) -> Labels:
    """Return labels after a statistic along axes: whole ones where they vary on others too, else mixed ones."""
    if one.axes - axes:
        return c.along(one, axes)
    c.mix(one, axes)
    return one


def layer_norm(c: Couplings, call: Call) -> Any:
    """Normalize over the last axes."""
    source, rank = call.flows[0], len(call.given(1, "normalized_shape"))
    axes = frozenset(range(source.value.dim() - rank, source.value.dim()))
    kept = call.name == "rms_norm"
    found = [related(c, one, axes)._replace(zero=kept and one.zero) for one in source.labels]
    return call.made(_affine(c, replace(source, labels=tuple(found)), call, source.value.dim() - rank))


def _affine(c: Couplings, source: Flow, call: Call, axis: int) -> tuple[Labels, ...]:
    """Return the labels after multiplying by `weight` and adding `bias`, whose first axis is that of the tensor."""
    for name, zero in (("weight", "any"), ("bias", "all")):
        flow = call.given(2 if name == "weight" else 3, name)
        if isinstance(flow, Flow):
            shape = [*flow.value.shape, *[1] * (source.value.dim() - axis - flow.value.dim())]
            source = replace(source, labels=c.combined([source, flow.reshaped(shape)], source.value.shape, zero))
    return source.labels


def group_norm(c: Couplings, call: Call) -> Any:
    """Normalize groups of channels: whole groups go, or one of each group where groups are few."""
    source, groups = call.flows[0], call.given(1, "num_groups")
    shape = source.value.shape
    found = []
    for one in source.labels:
        one = related(c, one, frozenset(range(2, len(shape))))
        if 1 in one.axes and groups < shape[1]:
            vector = core(c.along(one, frozenset({0})).ids, frozenset({1}))
            whole = groups >= shape[1] // groups
            united = c.along(labels(vector.reshape(groups, -1), False), frozenset({int(whole)}))
            if not whole:
                c.mix(united, united.axes)
            one = labels(united.ids.reshape(vector.shape).expand(shape), False)
        found.append(one._replace(zero=False))
    return call.made(_affine(c, replace(source, labels=tuple(found)), call, 1))


def batch_norm(c: Couplings, call: Call) -> Any:
    """Scale and shift each channel, by running statistics or by its own."""
    source, *parts = call.flows
    if call.name == "instance_norm" or call.given(1, "running_mean") is None:
        others = frozenset(range(2, source.value.dim())) | ({0} if call.name == "batch_norm" else frozenset())
        source = replace(source, labels=tuple(related(c, one, others) for one in source.labels))
    beside = [flow.reshaped([-1] + [1] * (source.value.dim() - 2)) for flow in parts]
    found = c.combined([source, *beside], source.value.shape, "all")
    affine = len(parts) == 4  # a channel whose weight and bias are zero is zero; what lies on other axes is shifted
    return call.made([one._replace(zero=1 in one.axes and (affine or one.zero)) for one in found])


def folded_weight(c: Couplings, call: Call) -> Any:
    """Multiply a weight by the factors of a batch norm, one for each index along an axis."""
    weight, *factors = call.flows
    axis, shape = call.given(4, "axis", 0), weight.value.shape
    if factors[-1].value.shape != shape[axis : axis + 1]:  # a transposed convolution in groups
        return unknown(c, call)
    beside = [flow.reshaped([-1 if at == axis else 1 for at in range(len(shape))]) for flow in factors]
    return call.made(c.combined([weight, *beside], shape, "first"))
