"""GPTQ: rounds weights so that layers give what they gave, on the inputs that the quantized model has for them."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxcompress.errors import PassError
from fxcompress.graph.edit import first_argument, module_of
from fxcompress.measure.calibrate import new_observer, ranges_of_rows
from fxcompress.measure.observing.ranges import MinMax
from fxcompress.nn import Mask, UniformQuantizer
from fxcompress.tune.finished import Finished
from fxcompress.tune.gptq_rounding import Factor, Grid, factored, round_columns
from fxcompress.tune.left import say_unrounded
from fxcompress.tune.walk import Stretch, Walk
from fxcompress.tune.weights import QuantizedWeight, float_weight, roundable, store

_KINDS = ("linear", "addmm", "conv1d", "conv2d", "conv3d")
_UNFOLDED = 2**24  # numbers unfolded at a time


class Recipe(NamedTuple):
    """The same as the arguments of the policy."""

    block_size: int
    damping: float
    act_order: bool


def gptq(gm: fx.GraphModule, walk: Walk, finished: Finished, **arguments: Any) -> None:
    """Round the weights of linear and convolution layers by GPTQ, part after part, each on quantized inputs.

    Scales stay those of calibration; those of groups are found anew, by the observer of their rule, in the weights as
    they are when the group is reached, unless `act_order` takes the columns out of order. Masked weights stay zero.
    Only what comes of the Hessian of one layer is in memory, which layers that read the same share. Raises PassError
    where no weight can be rounded so or a Hessian is not positive definite; warns of other weights that are left
    (Frantar et al. 2022, algorithm 1).
    """
    say_unrounded("gptq", [_of_a_kind(one) for one in walk.weights()])
    for stretch in walk.stretches(reference=False):
        together: dict[tuple[_Reading, ...], list[QuantizedWeight]] = {}
        for one, _ in roundable(map(_of_a_kind, stretch.weights)):
            together.setdefault(_readings(gm, stretch, one), []).append(one)
        for readings, alike in together.items():
            _round_alike(stretch, readings, alike, finished, Recipe(**arguments))


def _round_alike(
    stretch: Stretch,
    readings: Sequence["_Reading"],
    alike: Sequence[QuantizedWeight],
    finished: Finished,
    recipe: Recipe,
) -> None:
    """Round weights that read the same; what comes of their Hessian is found once, if at all, and given up here."""
    factor = cache(partial(_factor, stretch, readings, recipe))
    for one in alike:
        renew = not recipe.act_order and one.quantizer.layout.per == "group"
        names = [one.parameter(stretch.gm)]
        names += [f"{one.node.target}.{buffer}" for buffer in ("scale", "zero_point") if renew]
        work = partial(_round, stretch.gm, one, factor, recipe.block_size, renew)
        finished.once(one.layer.name, stretch.gm, names, work)


def _of_a_kind(one: QuantizedWeight) -> QuantizedWeight:
    """Return a weight with what hinders GPTQ: it multiplies what enters, position by position, with the rows."""
    if one.obstacle or one.operator.kind in _KINDS:
        return one
    return one._replace(obstacle=f"it is that of a {one.operator.kind}, not of {', '.join(_KINDS)}")


class _Reading(NamedTuple):
    """What a call multiplies its weight with: vectors along the last axis, or patches where there is a `kernel`.

    Each of the `groups` of a convolution has `columns` inputs.
    """

    node: fx.Node
    columns: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    def pieces(self, x: Tensor) -> Sequence[Tensor]:
        """Return what enters in batches small enough to be unfolded, padded."""
        if not self.kernel:
            return (x,)
        x = F.pad(x if x.dim() == len(self.kernel) + 2 else x.unsqueeze(0), self._ends())
        return x.split(max(1, _UNFOLDED // (x[:1].numel() * prod(self.kernel) + 1)))

    def _ends(self) -> list[int]:
        """Return the padding before and behind each axis, the last axis first."""
        if isinstance(self.padding, tuple):
            return [size for size in reversed(self.padding) for _ in range(2)]
        pairs = zip(reversed(self.kernel), reversed(self.dilation), strict=True)
        whole = [dilation * (size - 1) if self.padding == "same" else 0 for size, dilation in pairs]
        return [part for total in whole for part in (total // 2, total - total // 2)]

    def inputs(self, piece: Tensor) -> Tensor:
        """Return what each row of the weight is multiplied with, of shape (groups, columns, positions)."""
        if not self.kernel:
            return piece.reshape(-1, piece.shape[-1]).T.unsqueeze(0)
        x, axes = piece, len(self.kernel)
        for axis, (size, stride, dilation) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True)):
            x = x.unfold(2 + axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
        return x.permute(1, *range(2 + axes, x.dim()), 0, *range(2, 2 + axes)).reshape(self.groups, self.columns, -1)


def _readings(gm: fx.GraphModule, stretch: Stretch, one: QuantizedWeight) -> tuple[_Reading, ...]:
    """Return what the calls of a weight in a part read; weights for which this is equal share their Hessian."""
    weight = float_weight(gm, one)
    columns = weight.numel() // weight.shape[one.operator.out_axis]
    found = []
    for call in (call for call in one.calls if call in stretch.part.nodes):
        said: Mapping[str, Any] = dict(zip(one.operator.arguments, call.args, strict=True))
        geometry = {name: said[name] for name in ("stride", "padding", "dilation", "groups") if name in said}
        found.append(_Reading(said["input"], columns, tuple(weight.shape[2:]), **geometry))
    return tuple(found)


@torch.no_grad()
def _factor(stretch: Stretch, readings: Sequence[_Reading], recipe: Recipe) -> Factor:
    return factored(_hessian(stretch, readings), damping=recipe.damping, act_order=recipe.act_order)


def _hessian(stretch: Stretch, readings: Sequence[_Reading]) -> Tensor:
    """Return the sum of x x^T over all that enters, float32, of shape (groups, columns, columns)."""
    groups, columns = readings[0].groups, readings[0].columns
    total = torch.zeros(groups, columns, columns)
    for values in stretch.quantized(*(reading.node for reading in readings)):
        for reading, x in zip(readings, values, strict=True):
            for piece in reading.pieces(x.float()):
                inputs = reading.inputs(piece)
                total = total.to(inputs.device).baddbmm_(inputs, inputs.mT)
    return total


@torch.no_grad()
def _round(
    gm: fx.GraphModule, one: QuantizedWeight, factor: Callable[[], Factor], block_size: int, renew: bool
) -> None:
    """Round one weight; with `renew` the scales of its groups become those that were found on the way."""
    quantizer, axis = one.quantizer, one.operator.out_axis
    assert isinstance(quantizer, UniformQuantizer)
    try:
        known = factor()
    except ValueError as error:
        raise PassError(f"gptq: {one.layer.name!r}: {error}") from error
    rows, (blocks, columns) = float_weight(gm, one).movedim(axis, 0), known.order.shape
    shape = blocks, len(rows) // blocks, columns
    mask, grid = _mask(gm, one), _grid(quantizer, shape, renew)
    kept = None if mask is None else mask.movedim(axis, 0).reshape(shape)
    rounded = round_columns(rows.reshape(shape), known, grid, block_size=block_size, kept=kept)
    if renew:
        quantizer.scale.copy_(grid.scale.view_as(quantizer.scale))
        quantizer.zero_point.copy_(grid.zero_point.view_as(quantizer.zero_point))
    store(gm, one, rounded.reshape(rows.shape).movedim(0, axis))


def _grid(quantizer: UniformQuantizer, shape: tuple[int, int, int], renew: bool) -> Grid:
    """Return the levels of a weight of shape (groups of a convolution, rows, columns)."""
    groups, rows, columns = shape
    width = quantizer.layout.group_size if quantizer.layout.per == "group" else columns
    scale, zero_point = (
        (one if one.dim() else one.expand(groups * rows)).reshape(groups, rows, -1).clone()
        for one in (quantizer.scale, quantizer.zero_point)
    )
    low, high, symmetric, power_of_two = (quantizer.low, quantizer.high, quantizer.symmetric, quantizer.power_of_two)
    ranges = partial(_ranges, quantizer) if renew else None
    return Grid(scale, zero_point, width, low, high, symmetric, power_of_two, ranges)


def _ranges(quantizer: UniformQuantizer, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ends that the observer of a quantizer finds in each row."""
    new = MinMax if quantizer.observer is None else partial(new_observer, quantizer.observer)
    return ranges_of_rows(rows.float(), new, [quantizer])[0]


def _mask(gm: fx.GraphModule, one: QuantizedWeight) -> Tensor | None:
    """Return where masks under the quantizer leave the weight as it is, None where there is no mask."""
    kept, node = None, first_argument(one.node)
    while node.op != "get_attr":
        module = module_of(gm, node)
        if isinstance(module, Mask):
            kept = module.mask if kept is None else kept & module.mask
        node = first_argument(node)
    return kept
