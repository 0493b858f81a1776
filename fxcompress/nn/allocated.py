"""The AllocatedQuantizer: integer codes in even steps, with a number of bits for each channel."""

import torch
from torch import Tensor

from fxcompress.nn.functional import code_ends, saturated, straight_through, uniform_grid
from fxcompress.nn.layout import Layout
from fxcompress.nn.quantizer import SCALE_BYTES, Quantizer
from fxcompress.nn.uniform import unusual

_MOST = 8


class AllocatedQuantizer(Quantizer):
    """Quantize and dequantize the channels of a weight in even steps, with 0 to 8 bits each and `bits` on average.

    A channel of 2 to 8 bits is that of a UniformQuantizer. One of 1 bit has the levels -S / 2 and S / 2, the middles
    of two steps, whether symmetric or not, and one of 0 bits is zero (Banner et al. 2019, section 4). The buffers are
    `channel_bits` (int8), `scale` (float32) and `zero_point` (int32), all (channels,); `set_bits` comes before
    `set_range`. The gradient passes where nothing was clipped.
    """

    channel_bits: Tensor
    zero_point: Tensor

    def __init__(
        self,
        bits: int,
        *,
        symmetric: bool,
        axis: int,
        channels: int,
        power_of_two: bool = False,
        narrow: bool | None = None,
    ) -> None:
        if not 2 <= bits <= _MOST:
            raise ValueError(f"channels have 2 to {_MOST} bits on average, not {bits}")
        super().__init__(bits, Layout.channel(axis, channels))
        self.symmetric, self.power_of_two = symmetric, power_of_two
        self.narrow = symmetric if narrow is None else narrow
        self.register_buffer("channel_bits", torch.full((channels,), bits, dtype=torch.int8))
        self.register_buffer("scale", torch.full((channels,), torch.nan))
        self.register_buffer("zero_point", torch.zeros(channels, dtype=torch.int32))

    @property
    def dtype_name(self) -> str:
        return f"{'int' if self.symmetric else 'uint'}{self.bits} on average"

    @torch.no_grad()
    def set_bits(self, bits: Tensor) -> None:
        """Set the bits of each channel, whole numbers from 0 to 8; the range is to be set again then.

        Raises ValueError for other numbers.
        """
        if bits.shape != self.channel_bits.shape or not bool(((bits >= 0) & (bits <= _MOST)).all()):
            said = f"{len(self.channel_bits)} channels take as many numbers from 0 to {_MOST}"
            raise ValueError(f"{said}, not {bits.tolist()}")
        self.forget_range()
        self.channel_bits.copy_(bits)

    @torch.no_grad()
    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Set scales and zero points so that the grid of each channel spans `low` .. `high`, (channels,) both.

        Raises ValueError when they are not finite.
        """
        low, high = self._finite_ends(low, high)
        for bits, (first, last) in enumerate(self._code_ends()):
            here = self.channel_bits == bits
            if bits > 1:
                grid = uniform_grid(low[here], high[here], first, last, self.symmetric, self.power_of_two)
            else:  # two steps on both sides of zero, or none
                ends = (low[here], high[here]) if bits else (torch.zeros_like(low[here]),) * 2
                grid = uniform_grid(*ends, -1, 1, True, self.power_of_two)
            self.scale[here], self.zero_point[here] = grid[0].to(self.scale), grid[1].to(self.zero_point)
        self._ready = True

    def stored_bytes(self, numel: int) -> int:
        """Return the bytes of packed codes, and for each channel of its scale, its bits and its zero point.

        Symmetric zero points are alike and not counted.
        """
        channels = len(self.channel_bits)
        beside = SCALE_BYTES + (1 if self.symmetric else 2)
        return (int(self.channel_bits.sum()) * (numel // max(channels, 1)) + 7) // 8 + channels * beside

    def _code_ends(self) -> list[tuple[int, int]]:
        """Return the lowest and the highest code for each number of bits."""
        return [(0, 0), (-1, 0), *(code_ends(bits, self.symmetric, self.narrow) for bits in range(2, _MOST + 1))]

    def _round(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            wide = x.to(torch.promote_types(x.dtype, self.scale.dtype))
            table = torch.tensor(self._code_ends(), dtype=wide.dtype, device=x.device)
            low, high = (self.layout.spread(end, x) for end in table[self.channel_bits.long()].unbind(1))
            scale, zero_point, bits = (
                self.layout.spread(one, x) for one in (self.scale, self.zero_point, self.channel_bits)
            )
            middle = (bits == 1) * 0.5
            unclipped = (wide / scale - middle).round_().add_(zero_point)
            codes = torch.minimum(torch.maximum(unclipped, low), high)
            value = saturated((codes - zero_point + middle) * scale, x.dtype)
        return straight_through(x, value, (codes == unclipped) & (bits > 0))

    def extra_repr(self) -> str:
        return super().extra_repr() + unusual(self.symmetric, self.narrow, self.power_of_two)
