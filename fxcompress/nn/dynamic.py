"""The DynamicQuantizer: integer codes for activations, whose range is that of each call."""

import torch
from torch import Tensor

from fxcompress.nn.functional import code_ends, integer_codes, saturated, straight_through, uniform_grid
from fxcompress.nn.layout import Layout
from fxcompress.nn.quantizer import Quantizer
from fxcompress.nn.uniform import unusual


class DynamicQuantizer(Quantizer):
    """Quantize and dequantize an activation in even steps between the least and the greatest value it has.

    The range is that of the whole tensor, or with `token` that of each vector along the last axis. Codes are those of
    UniformQuantizer with 2 to 8 or 16 bits; 8 affine bits per tensor are what ONNX DynamicQuantizeLinear gives. There
    is no state and nothing to calibrate. NaN makes NaN of all that shares its scale. The gradient passes
    everywhere, for nothing lies outside the range, but where steps that are powers of two end before it.
    """

    def __init__(
        self,
        bits: int,
        *,
        symmetric: bool = False,
        token: bool = False,
        power_of_two: bool = False,
        narrow: bool | None = None,
    ) -> None:
        super().__init__(bits, Layout("token" if token else "tensor"))
        self.symmetric, self.power_of_two = symmetric, power_of_two
        self.narrow = symmetric if narrow is None else narrow
        self.low, self.high = code_ends(bits, symmetric, self.narrow)
        self._ready = True

    @property
    def needs_range(self) -> bool:
        return False

    @property
    def dtype_name(self) -> str:
        return f"{'int' if self.symmetric else 'uint'}{self.bits}"

    def set_range(self, low: Tensor, high: Tensor) -> None:
        raise ValueError(f"{self} takes its range from each call; it cannot be set")

    def forget_range(self) -> None:
        """Do nothing: no range is kept."""

    def stored_bytes(self, numel: int) -> int:
        """Return the bytes of packed codes with their scales and zero points: none, nothing of it is stored."""
        return 0

    def _round(self, x: Tensor) -> Tensor:
        if x.numel() == 0:
            return x
        with torch.no_grad():
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            low, high = torch.aminmax(self.layout.rows(wide), dim=1)
            end = torch.finfo(wide.dtype).max / 2  # the span is to be a number, too
            low, high = low.clamp(-end, 0), high.clamp(0, end)
            grid = uniform_grid(low, high, self.low, self.high, self.symmetric, self.power_of_two)
            scale, zero_point = (self.layout.spread(one, x) for one in grid)
            value = integer_codes(wide, scale, zero_point, self.low, self.high).sub_(zero_point).mul_(scale)
            inside = None
            if self.power_of_two:
                steps = (wide / scale).round_().add_(zero_point)
                inside = (steps >= self.low) & (steps <= self.high)
        return straight_through(x, saturated(value, x.dtype), inside)

    def extra_repr(self) -> str:
        return f"{self.dtype_name}, dynamic {self.layout}" + unusual(self.symmetric, self.narrow, self.power_of_two)
