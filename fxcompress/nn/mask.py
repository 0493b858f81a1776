"""The Mask: sets chosen elements of the tensor on one edge of the graph to zero."""

import torch
from torch import Tensor, nn


class Mask(nn.Module):
    """Multiply the tensor on an edge by a fixed 0/1 mask of the same shape, held in the bool buffer `mask`."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.to(torch.bool))

    @property
    def sparsity(self) -> float:
        """The share of elements that the mask sets to zero."""
        return 1.0 - self.mask.sum().item() / max(self.mask.numel(), 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask

    def extra_repr(self) -> str:
        return f"{self.sparsity:.0%} zeros"
