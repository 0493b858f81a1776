"""GPTQ's rounding: column after column, what each loses is made up for by the columns still to come."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fxcompress.nn.functional import integer_codes, uniform_grid

_PIECE = 256  # columns that are put in order at a time

Ranges = Callable[[Tensor], tuple[Tensor, Tensor]]  # the ends of the range of each row


@dataclass
class Grid:
    """The levels of some weights of shape (blocks, rows, columns): S * (clip(round(x / S) + Z, low, high) - Z).

    `scale` and `zero_point` have the shape (blocks, rows, groups), float32, where a group is `width` consecutive
    columns. With `ranges`, the grid of a group is that of the range found in it when it is reached.
    """

    scale: Tensor
    zero_point: Tensor
    width: int
    low: int
    high: int
    symmetric: bool
    power_of_two: bool
    ranges: Ranges | None = None

    def round(self, x: Tensor, columns: Tensor) -> Tensor:
        """Return the nearest levels of one column of each block, x of shape (blocks, rows)."""
        group = (columns // self.width).view(-1, 1, 1).expand(*x.shape, 1)
        scale, zero_point = (one.gather(2, group).squeeze(2) for one in (self.scale, self.zero_point))
        return (integer_codes(x, scale, zero_point, self.low, self.high) - zero_point) * scale

    def renew(self, start: int, weight: Tensor) -> None:
        """Set the grid of the group that begins with column `start` to the range of its weights as they are now.

        `weight` is of shape (blocks, rows, width); that of the last group may be less wide.
        """
        assert self.ranges is not None
        ends = self.ranges(weight.flatten(0, 1))
        low, high = (end.double().view(weight.shape[:2]) for end in ends)
        ends_with_zero = low.clamp(max=0), high.clamp(min=0)
        found = uniform_grid(*ends_with_zero, self.low, self.high, self.symmetric, self.power_of_two)
        for kept, new in zip((self.scale, self.zero_point), found, strict=True):
            kept[:, :, start // self.width] = new


class Factor(NamedTuple):
    """What GPTQ needs of some Hessians: the `order` in which columns are rounded, the first last, and their `shares`.

    With the damped Hessian L L^T, L lower triangular and its columns in that order, the shares are L_jk / L_kk, which
    give the same levels as the paper's inverse (Chee et al. 2023, theorem 6) without one.
    """

    order: Tensor
    shares: Tensor


def factored(hessian: Tensor, *, damping: float, act_order: bool) -> Factor:
    """Return the Factor of the sums of x x^T over the inputs of some blocks, (blocks, columns, columns).

    A factor of the sums cancels. The columns stand in order, or by falling diagonal with `act_order`. The Hessian of
    a wide layer is large: one of its size in float64 is held, and is factored in its place.
    Raises ValueError where the damped Hessian is not finite or not positive definite.
    """
    order = _order(hessian, act_order).flip(1)
    shares = _ordered(hessian, order)
    diagonal = shares.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(1, keepdim=True)
    if not mean.isfinite().all():
        raise ValueError("its inputs are NaN, infinite or too large to be squared; leave out such data, or the layer")
    diagonal.add_(torch.where(mean > 0, damping * mean, 1.0))  # a block whose inputs are all zero
    failed = torch.empty(len(order), dtype=torch.int32, device=order.device)
    torch.linalg.cholesky_ex(shares, out=(shares, failed))
    if failed.any():
        raise ValueError(f"the Hessian of its inputs is not positive definite with damping {damping}; raise damping")
    return Factor(order, shares.div_(diagonal.clone().unsqueeze(1)))


def round_columns(
    weight: Tensor, factor: Factor, grid: Grid, *, block_size: int, kept: Tensor | None = None
) -> Tensor:
    """Return levels for a weight that make ||W x - Q x|| small (Frantar et al. 2022, algorithm 1).

    `weight` is of shape (blocks, rows, columns). Column k is rounded, in float64, after the sum over the columns j
    before it of (W_j - Q_j) times the share of k in j is added to it. `block_size` columns take the errors before
    them together. An input that is always zero has its weights rounded to the nearest. `kept` is false where the
    weight must become zero.
    """
    order, shares = factor
    last, rows = weight.shape[2], weight.shape[1]
    levels = torch.empty_like(weight)
    errors = weight.new_zeros(len(weight), last, rows, dtype=torch.float64)  # a column is a row: it lies together

    def taken(values: Tensor, start: int, end: int) -> Tensor:
        return values.mT.gather(1, order[:, start:end].unsqueeze(2).expand(-1, -1, rows))

    def passed_on(start: int, end: int) -> Tensor:
        return shares[:, end:, start:end].mT @ errors[:, end:]

    for first, stop in _blocks(last, block_size, grid):
        start, end = last - stop, last - first
        if grid.ranges is not None and first % grid.width == 0:
            until = max(end - grid.width, 0)
            # what the columns would become if none of them were rounded
            among = shares[:, until:end, until:end].mT
            moved = torch.linalg.solve_triangular(among, passed_on(until, end), upper=True, unitriangular=True)
            group = taken(weight, until, end) + moved
            grid.renew(first, (group if kept is None else group * taken(kept, until, end)).flip(1).mT)
        exact, free = taken(weight, start, end).double(), None if kept is None else taken(kept, start, end)
        block, rounded = exact + passed_on(start, end), torch.empty_like(exact)
        for at in reversed(range(start, end)):
            here = at - start
            block[:, here] += (shares[:, at + 1 : end, at].unsqueeze(1) @ errors[:, at + 1 : end]).squeeze(1)
            level = grid.round(block[:, here], order[:, at])
            rounded[:, here] = level if free is None else level * free[:, here]
            errors[:, at] = exact[:, here] - rounded[:, here]
        columns = order[:, start:end].unsqueeze(1).expand(-1, rows, -1)
        levels.scatter_(2, columns, rounded.mT.to(levels.dtype))
    return levels


def _ordered(hessian: Tensor, order: Tensor) -> Tensor:
    """Return a Hessian with its columns in order, in float64 and laid out as LAPACK takes it."""
    found = torch.empty_like(hessian, dtype=torch.float64).mT
    block = torch.arange(len(order), device=order.device).view(-1, 1, 1)
    for start in range(0, order.shape[1], _PIECE):
        some = order[:, start : start + _PIECE]
        found[:, start : start + _PIECE] = hessian[block, some.unsqueeze(2), order.unsqueeze(1)]
    return found


def _order(hessian: Tensor, act_order: bool) -> Tensor:
    """Return the columns of each block in the order in which they are rounded."""
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    if act_order:
        return diagonal.argsort(dim=1, descending=True, stable=True)
    return torch.arange(diagonal.shape[1], device=hessian.device).expand_as(diagonal)


def _blocks(columns: int, block_size: int, grid: Grid) -> Iterator[tuple[int, int]]:
    """Yield the ends of each block; a group whose range is yet to be found begins one, so that it is up to date."""
    starts = {*range(0, columns, block_size)}
    if grid.ranges is not None:
        starts |= {*range(0, columns, grid.width)}
    yield from pairwise(sorted(starts | {columns}))
