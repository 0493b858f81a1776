"""Packing: integer codes stored at their own width, `bits` bits for each."""

import torch
from torch import Tensor


def packed_bytes(numel: int, bits: int) -> int:
    """Return the bytes that `numel` codes of `bits` bits take when packed: ceil(numel * bits / 8)."""
    return (numel * bits + 7) // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack integer codes into a uint8 vector of `packed_bytes` bytes: one code after the other, high bit first.

    Negative codes are in two's complement. The last byte is filled with zeros.
    """
    places = torch.arange(bits - 1, -1, -1)
    stream = (codes.reshape(-1, 1).to(torch.int16) >> places & 1).flatten().to(torch.uint8)
    stream = torch.nn.functional.pad(stream, (0, -stream.numel() % 8)).view(-1, 8)
    return (stream << torch.arange(7, -1, -1, dtype=torch.uint8)).sum(1, dtype=torch.uint8)
