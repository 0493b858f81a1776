"""Axes: which axes of the inputs torch.export is to leave open, for other sizes than those of the example."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.export import Dim

Axes = list[dict[int, Any]]  # for each tensor its open axes, with what torch.export calls their sizes


def batches(tensors: Sequence[Tensor]) -> Axes:
    """Return the first axis of each tensor; one entry counts where all tensors are batches of one."""
    sizes = [tensor.shape[0] if tensor.dim() else 0 for tensor in tensors]
    least = 1 if set(sizes) <= {0, 1} else 2
    return [{0: Dim.AUTO} if size >= least else {} for size in sizes]


def lengths(tensors: Sequence[Tensor]) -> Axes:
    """Return the axes that are batches or lengths.

    Lengths are all axes but the first of integer and bool tensors, and the middle one of three; a last axis of the
    same size may be one too, as in a mask of floating-point numbers. Images, of four axes and more, keep their size.
    torch.export takes a length of one for a constant.
    """
    axes = batches(tensors)
    sequences = [(found, tensor) for found, tensor in zip(axes, tensors, strict=True) if tensor.dim() < 4]
    for found, tensor in sequences:
        found.update({axis: Dim.AUTO for axis in range(1, _features(tensor)) if tensor.shape[axis] > 1})
    sizes = {tensor.shape[axis] for found, tensor in sequences for axis in found if axis}
    for found, tensor in sequences:
        found.update({axis: Dim.AUTO for axis in range(1, tensor.dim()) if tensor.shape[axis] in sizes})
    return axes


def _features(tensor: Tensor) -> int:
    """Return the axis that holds features, one behind the last where none does."""
    return tensor.dim() - (1 if tensor.is_floating_point() or tensor.is_complex() else 0)


def closed(axes: Axes, dependent: Sequence[set[int]]) -> Axes:
    """Return axes without those that depend on others."""
    pairs = zip(axes, dependent, strict=True)
    return [{axis: name for axis, name in own.items() if axis not in closing} for own, closing in pairs]


def tied(axes: Axes, dependent: Sequence[set[int]], tensors: Sequence[Tensor]) -> Axes:
    """Return axes of which those that depend on others are equal, where they are so in the example."""
    groups: dict[tuple[int, int], list[dict[int, Any]]] = {}
    found = [dict(one) for one in axes]
    for names, binding, tensor in zip(found, dependent, tensors, strict=True):
        for axis in binding & names.keys():
            groups.setdefault((axis, tensor.shape[axis]), []).append(names)
    for (axis, size), members in groups.items():
        for names in members if len(members) > 1 else ():
            names[axis] = Dim(f"axis_{axis}_of_{size}", min=2)
    return found


def repeats(tensor: Tensor, axes: dict[int, Any]) -> bool:
    """Return whether a tensor is a batch of one whose size is to be open, which torch.export takes for a constant."""
    return 0 in axes and len(tensor) == 1


def repeated(tensor: Tensor, axes: dict[int, Any]) -> Tensor:
    """Return a batch of two for a batch of one, whose size is to be open."""
    return tensor.repeat_interleave(2, 0) if repeats(tensor, axes) else tensor
