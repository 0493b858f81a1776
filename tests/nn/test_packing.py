"""Tests of packing: exact bytes, and bits in the order that numpy puts them."""

import numpy as np
import pytest
import torch

from fxcompress.nn import packing
from fxcompress.nn.packing import pack, packed_bytes


@pytest.mark.parametrize(
    ("numel", "bits", "expected"), [(8, 3, 3), (9, 3, 4), (1, 2, 1), (5, 4, 3), (7, 8, 7), (0, 5, 0)]
)
def test_packed_bytes(numel, bits, expected):
    assert packed_bytes(numel, bits) == expected


@pytest.mark.parametrize("bits", range(2, 9))
def test_pack_is_a_stream_of_bits(bits):
    rng = np.random.default_rng(bits)
    codes = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (3, 37))
    bytewise = np.unpackbits((codes.reshape(-1, 1) % 2**bits).astype(np.uint8), axis=1)
    expected = np.packbits(bytewise[:, 8 - bits :])
    packed = pack(torch.from_numpy(codes).to(torch.int8), bits)
    assert packed.dtype == torch.uint8
    assert packed.numel() == packed_bytes(111, bits)
    np.testing.assert_array_equal(packed.numpy(), expected)


def test_pack_in_chunks(monkeypatch):
    codes = torch.randint(-4, 4, (45,), dtype=torch.int8)
    whole = pack(codes, 3)
    monkeypatch.setattr(packing, "_CHUNK", 16)
    assert torch.equal(pack(codes, 3), whole)
