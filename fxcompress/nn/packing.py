"""Packing: integer codes stored at their own width, `bits` bits for each."""

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK = 2**20  # codes packed at a time, to bound memory; a multiple of 8, so that chunks end with whole bytes


def packed_bytes(numel: int, bits: int) -> int:
    """Return the bytes that `numel` codes of `bits` bits take when packed: ceil(numel * bits / 8)."""
    return (numel * bits + 7) // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack integer codes into a uint8 vector of `packed_bytes` bytes: one code after the other, high bit first.

    Negative codes are in two's complement. The last byte is filled with zeros.
    """
    return torch.cat([_pack(part, bits) for part in codes.flatten().split(_CHUNK)])


def _pack(codes: Tensor, bits: int) -> Tensor:
    places = torch.arange(bits - 1, -1, -1, dtype=torch.int16)
    stream = (codes.unsqueeze(1).to(torch.int16) >> places & 1).flatten().to(torch.uint8)
    stream = F.pad(stream, (0, -stream.numel() % 8)).view(-1, 8)
    return (stream << torch.arange(7, -1, -1, dtype=torch.uint8)).sum(1, dtype=torch.uint8)
