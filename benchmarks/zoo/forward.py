"""One forward pass of a model of the zoo, and the comparison of two."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

TOLERANCE = 1e-4  # of an output's largest value


@torch.no_grad()
def run(module: nn.Module, inputs: Any) -> Any:
    """Return the outputs on copies of the inputs, from one seed.

    Inputs are one tensor, a tuple of positional arguments or a dict of keyword arguments.
    """
    inputs = pytree.tree_map_only(Tensor, torch.clone, inputs)
    torch.manual_seed(0)
    if isinstance(inputs, Mapping):
        return module(**inputs)
    return module(*inputs) if isinstance(inputs, tuple) else module(inputs)


def difference(expected: Any, found: Any) -> float:
    """Return the largest difference of two outputs, each tensor's in units of its largest value; 0 is bit-equal.

    Raises ValueError where the outputs are not of the same tensors.
    """
    wanted, structure = pytree.tree_flatten(expected)
    got, other = pytree.tree_flatten(found)
    if len(wanted) != len(got):
        raise ValueError(f"returns {other}, not {structure}")
    return max((_difference(a, b) for a, b in zip(wanted, got, strict=True)), default=0.0)


def _difference(a: Any, b: Any) -> float:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        if isinstance(a, Tensor) or isinstance(b, Tensor) or a != b:
            raise ValueError(f"returns {b!r}, not {a!r}")
        return 0.0
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        raise ValueError(f"returns {b.dtype}{list(b.shape)}, not {a.dtype}{list(a.shape)}")
    if torch.equal(a, b):
        return 0.0
    a, b = a.double(), b.double()
    finite = a.isfinite()
    if not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()) or not b[finite].isfinite().all():
        return float("inf")
    apart = (a[finite] - b[finite]).abs().max().item()
    return apart / max(a[finite].abs().max().item(), 1e-30)
