"""The UniformQuantizer: integer codes in even steps, with a scale and a zero point that are fixed beforehand."""

from collections.abc import Callable

import torch
from torch import Tensor

from fxcompress.nn.functional import code_ends, fake_quantize, integer_codes, uniform_grid
from fxcompress.nn.layout import Layout
from fxcompress.nn.packing import packed_bytes
from fxcompress.nn.quantizer import SCALE_BYTES, Quantizer

_CODES = {
    (8, True): torch.int8,
    (8, False): torch.uint8,
    (16, True): torch.int16,
    (16, False): torch.uint16,
}


class UniformQuantizer(Quantizer):
    """Quantize and dequantize in even steps: S * (clip(round(x / S) + Z, low, high) - Z), with 2 to 8 or 16 bits.

    Symmetric quantizers use the signed codes -(2^(b-1) - 1) .. 2^(b-1) - 1 with Z = 0; affine ones the unsigned codes
    0 .. 2^b - 1 (Jacob et al. 2018, equations 1 and 12). `narrow` says whether the lowest code of the type is left
    out; by default symmetric codes are narrow and affine ones are not. With `power_of_two`, scales are powers of two,
    for a range widened to one: engines multiply by shifting (Lai et al. 2018, section 3); the last step may be
    clipped. All state is in the buffers `scale` (float32) and `zero_point` (int32), in the shape of the layout:
    `axis` and `channels` are short for one scale for each channel.
    """

    zero_point: Tensor

    def __init__(
        self,
        bits: int,
        *,
        symmetric: bool,
        axis: int | None = None,
        channels: int | None = None,
        layout: Layout | None = None,
        power_of_two: bool = False,
        narrow: bool | None = None,
    ) -> None:
        if (axis is None) != (channels is None):
            raise ValueError("a per-channel Quantizer needs both `axis` and `channels`, a per-tensor one neither")
        if layout is None:
            layout = Layout() if axis is None or channels is None else Layout.channel(axis, channels)
        super().__init__(bits, layout)
        self.symmetric, self.power_of_two = symmetric, power_of_two
        self.narrow = symmetric if narrow is None else narrow
        self.low, self.high = code_ends(bits, symmetric, self.narrow)
        self.register_buffer("scale", torch.full(layout.shape, torch.nan))
        self.register_buffer("zero_point", torch.zeros(layout.shape, dtype=torch.int32))

    @property
    def integer(self) -> bool:
        return self.bits <= 8 and self.layout.per != "group"

    @property
    def dtype_name(self) -> str:
        return f"{'int' if self.symmetric else 'uint'}{self.bits}"

    @torch.no_grad()
    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Set scale and zero point so that the grid spans `low` .. `high`, widened to hold zero exactly.

        `low` and `high` have one value for each scale. Raises ValueError when they are not finite.
        """
        low, high = self._finite_ends(low, high)
        scale, zero_point = uniform_grid(low, high, self.low, self.high, self.symmetric, self.power_of_two)
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)
        self._ready = True

    def round_between(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Return `x` rounded to the grid that would span `low` .. `high`, ranges around zero that broadcast."""
        scale, zero_point = uniform_grid(low, high, self.low, self.high, self.symmetric, self.power_of_two)
        return fake_quantize(x, scale.to(x), zero_point.to(x), self.low, self.high)

    def stored_bytes(self, numel: int) -> int:
        """Return the bytes of packed codes, scales and zero points; symmetric ones are alike and not counted."""
        zero_point = 0 if self.symmetric else packed_bytes(1, self.bits)
        return packed_bytes(numel, self.bits) + self.scale.numel() * (SCALE_BYTES + zero_point)

    def codes(self, x: Tensor) -> Tensor:
        """Return the integer codes of `x` as int8 (symmetric) or uint8 (affine), for 16 bits as int16 or uint16."""
        self._refuse_unready()
        return self._on_grid(integer_codes, x).to(_CODES[max(self.bits, 8), self.symmetric])

    def _round(self, x: Tensor) -> Tensor:
        return self._on_grid(fake_quantize, x)

    def _on_grid(self, function: Callable[..., Tensor], x: Tensor) -> Tensor:
        """Call a function of `x` and the grid."""
        if self.layout.per == "group":  # as rows, so that no scale is written out for each element
            scale, zero_point = self.scale.view(-1, 1), self.zero_point.view(-1, 1)
            return self.layout.unrows(function(self.layout.rows(x), scale, zero_point, self.low, self.high), x)
        scale, zero_point = (self.layout.spread(one, x) for one in (self.scale, self.zero_point))
        return function(x, scale, zero_point, self.low, self.high)

    def extra_repr(self) -> str:
        return super().extra_repr() + unusual(self.symmetric, self.narrow, self.power_of_two)


def unusual(symmetric: bool, narrow: bool, power_of_two: bool) -> str:
    """Return what is to be said of a grid beside its type: `, power-of-two scales` and which codes are used."""
    said = ", power-of-two scales" if power_of_two else ""
    return said if narrow == symmetric else f"{said}, {'narrow' if narrow else 'full'} range"
