"""The Layout of a quantizer: which elements of a tensor share one scale."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """One scale for the whole tensor, for each channel of a weight, for each group of a channel, or for each token.

    A group is `group_size` consecutive columns of `weight.movedim(axis, 0).flatten(1)`, so many of the input weights
    of one output channel; the last group of a channel may be smaller. A token is all of the last axis of an
    activation: how many there are is known only when it comes.
    """

    per: Literal["tensor", "channel", "group", "token"] = "tensor"
    axis: int | None = None
    channels: int = 0
    columns: int = 0
    group_size: int = 0

    @classmethod
    def channel(cls, axis: int, channels: int) -> Self:
        """Return one scale for each of `channels` channels, which lie on `axis`."""
        return cls("channel", axis, channels)

    @classmethod
    def group(cls, axis: int, shape: Sequence[int], group_size: int) -> Self:
        """Return one scale for each group of a weight of that shape, whose output channels lie on `axis`."""
        channels = shape[axis]
        return cls("group", axis, channels, prod(shape) // max(channels, 1), group_size)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the scales: () for a tensor, (channels,), or (channels, groups)."""
        if self.per == "group":
            return self.channels, -(-self.columns // self.group_size)
        return (self.channels,) if self.per == "channel" else ()

    def spread(self, vector: Tensor, x: Tensor) -> Tensor:
        """Return one value for each scale (of the scales' shape) in a shape that broadcasts against `x`."""
        if self.per == "tensor":
            return vector.reshape(())
        if self.per == "token":
            return vector.reshape(*x.shape[:-1], 1) if x.dim() else vector.reshape(())
        assert self.axis is not None
        if self.per == "channel":
            shape = [1] * x.dim()
            shape[self.axis] = -1
            return vector.view(shape)
        columns = vector.repeat_interleave(self.group_size, dim=1)[:, : self.columns]
        return columns.reshape(x.movedim(self.axis, 0).shape).movedim(0, self.axis)

    def rows(self, x: Tensor) -> Tensor:
        """Return `x` as (scales, values): what shares a scale is a row; the short last groups end in zeros."""
        if self.per == "tensor":
            return x.reshape(1, -1)
        if self.per == "token":
            return x.reshape(prod(x.shape[:-1]), x.shape[-1] if x.dim() else 1)
        assert self.axis is not None
        moved = x.movedim(self.axis, 0)
        rows = moved.reshape(self.channels, prod(moved.shape[1:]))
        if self.per == "channel":
            return rows
        groups = self.shape[1]
        padded = F.pad(rows, (0, groups * self.group_size - self.columns))
        return padded.reshape(self.channels * groups, self.group_size)

    def unrows(self, rows: Tensor, like: Tensor) -> Tensor:
        """Return what `rows` made of a tensor in the shape of that tensor, `like`."""
        if self.per in ("tensor", "token"):
            return rows.reshape(like.shape)
        assert self.axis is not None
        if self.per == "group":
            rows = rows.reshape(self.channels, self.shape[1] * self.group_size)[:, : self.columns]
        return rows.reshape(like.movedim(self.axis, 0).shape).movedim(0, self.axis)

    def whole_rows(self, x: Tensor) -> list[Tensor]:
        """Return the rows of `x` without padding: those of whole groups, and those of the short last ones apart."""
        if self.per != "group" or self.columns % self.group_size == 0:
            return [self.rows(x)]
        assert self.axis is not None
        rows = x.movedim(self.axis, 0).reshape(self.channels, self.columns)
        whole = self.columns - self.columns % self.group_size
        parts = [rows[:, :whole].reshape(-1, self.group_size), rows[:, whole:]]
        return parts if whole else parts[1:]

    def gather(self, vectors: Sequence[Tensor]) -> Tensor:
        """Return one value for each row of each of the `whole_rows` in the shape of the scales."""
        if self.per != "group":
            return vectors[0].reshape(self.shape)
        return torch.cat([vector.reshape(self.channels, -1) for vector in vectors], dim=1)

    def __str__(self) -> str:
        return f"per group of {self.group_size}" if self.per == "group" else f"per {self.per}"
