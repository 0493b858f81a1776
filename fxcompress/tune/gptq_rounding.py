"""GPTQ's rounding: column after column, what each loses is made up for by the columns still to come."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fxcompress.nn.functional import integer_codes, uniform_grid

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
        """Set the grid of the group that begins with column `start` to the range of its weights as they are now."""
        assert self.ranges is not None
        ends = self.ranges(weight[:, :, start : start + self.width].flatten(0, 1))
        low, high = (end.double().view(weight.shape[:2]) for end in ends)
        ends_with_zero = low.clamp(max=0), high.clamp(min=0)
        found = uniform_grid(*ends_with_zero, self.low, self.high, self.symmetric, self.power_of_two)
        for kept, new in zip((self.scale, self.zero_point), found, strict=True):
            kept[:, :, start // self.width] = new


def round_columns(
    weight: Tensor,
    hessian: Tensor,
    grid: Grid,
    *,
    block_size: int,
    damping: float,
    act_order: bool,
    kept: Tensor | None = None,
) -> Tensor:
    """Return levels for a weight that make ||W x - Q x|| small, in float64 (Frantar et al. 2022, algorithm 1).

    `weight` is of shape (blocks, rows, columns), `hessian` the sum of x x^T over the inputs of each block, of shape
    (blocks, columns, columns); a factor of it cancels. The columns are rounded in order, or by falling diagonal with
    `act_order`; each error, divided by the diagonal of the upper Cholesky factor U of the inverse Hessian, is taken
    from the later columns along the rows of U. `block_size` columns pass their errors on together. An input that is
    always zero has its weights rounded to the nearest. `kept` is false where the weight must become zero.
    Raises ValueError where the damped Hessian is not positive definite.
    """
    weight, hessian = weight.double().clone(), hessian.double()
    order = _order(hessian, act_order)
    columns = order.unsqueeze(1).expand_as(weight)
    weight = weight.gather(2, columns)
    kept = None if kept is None else kept.gather(2, columns)
    rows = order.unsqueeze(2).expand_as(hessian)
    factor = _inverse_factor(hessian.gather(1, rows).gather(2, rows.mT), damping)
    rounded = torch.empty_like(weight)
    for start, end in _blocks(weight.shape[2], block_size, grid):
        if grid.ranges is not None and start % grid.width == 0:
            grid.renew(start, weight if kept is None else weight * kept)
        errors = torch.empty_like(weight[:, :, start:end])
        for at in range(start, end):
            level = grid.round(weight[:, :, at], order[:, at])
            level = level if kept is None else level * kept[:, :, at]
            error = (weight[:, :, at] - level) / factor[:, at, at].unsqueeze(1)
            weight[:, :, at + 1 : end] -= error.unsqueeze(2) * factor[:, at, at + 1 : end].unsqueeze(1)
            errors[:, :, at - start], rounded[:, :, at] = error, level
        weight[:, :, end:] -= errors @ factor[:, start:end, end:]
    return torch.empty_like(rounded).scatter_(2, columns, rounded)


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


def _inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """Return upper triangular U with U^T U = (H + damping * mean(diagonal of H) * I)^-1.

    Where J turns the order of the columns around and J H J = L L^T, it is the inverse of J L J.
    """
    mean = hessian.diagonal(dim1=1, dim2=2).mean(1)
    added = torch.where(mean > 0, damping * mean, 1.0)  # a block whose inputs are all zero
    identity = torch.eye(hessian.shape[1], dtype=hessian.dtype, device=hessian.device)
    lower, failed = torch.linalg.cholesky_ex((hessian + added.view(-1, 1, 1) * identity).flip(1, 2))
    if failed.any():
        raise ValueError(f"the Hessian of its inputs is not positive definite with damping {damping}; raise damping")
    return torch.linalg.solve_triangular(lower.flip(1, 2), identity.expand_as(hessian), upper=True)
