"""The Quantizer: rounds the tensor on one edge of the graph to a uniform grid."""

from typing import Any

import torch
from torch import Tensor, nn

from fxcompress.errors import NotReadyError
from fxcompress.nn.functional import fake_quantize, integer_codes


class Quantizer(nn.Module):
    """Quantize and dequantize the tensor on an edge: S * (clip(round(x / S) + Z, low, high) - Z).

    Symmetric quantizers use the signed codes -(2^(b-1) - 1) .. 2^(b-1) - 1 with Z = 0; affine ones the unsigned codes
    0 .. 2^b - 1 (Jacob et al. 2018, equations 1 and 12). With `power_of_two`, scales are powers of two, for a range
    widened to one: engines multiply by shifting (Lai et al. 2018, section 3); the last step may be clipped. All state
    is in the buffers `scale` (float32) and `zero_point` (int32), of shape () per tensor or (channels,) per channel
    along `axis`.

    `enabled = False` lets the tensor pass unchanged (a run-time switch like `training`, not saved).
    Raises NotReadyError when called before `set_range` or a loaded state has given it a range.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(
        self,
        bits: int,
        *,
        symmetric: bool,
        axis: int | None = None,
        channels: int | None = None,
        power_of_two: bool = False,
    ) -> None:
        super().__init__()
        if not 2 <= bits <= 8:
            raise ValueError(f"a Quantizer has 2 to 8 bits, not {bits}")
        if (axis is None) != (channels is None):
            raise ValueError("a per-channel Quantizer needs both `axis` and `channels`, a per-tensor one neither")
        self.bits, self.symmetric, self.axis, self.power_of_two = bits, symmetric, axis, power_of_two
        self.low: int = 1 - 2 ** (bits - 1) if symmetric else 0
        self.high: int = 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1
        shape = () if channels is None else (channels,)
        self.register_buffer("scale", torch.full(shape, torch.nan))
        self.register_buffer("zero_point", torch.zeros(shape, dtype=torch.int32))
        self.enabled = True
        self.observer: Any = None  # what calibration is to find the range with; gone once the range is known
        self._ready = False  # what isfinite(scale) says, kept in Python: asking the tensor would cost every call

    @property
    def ready(self) -> bool:
        """Whether the range is known."""
        return self._ready

    @property
    def dtype_name(self) -> str:
        """The name of the integer type, for example `int4` (symmetric) or `uint8` (affine)."""
        return f"{'int' if self.symmetric else 'uint'}{self.bits}"

    @torch.no_grad()
    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Set scale and zero point so that the grid spans `low` .. `high`, widened to hold zero exactly.

        `low` and `high` are scalars per tensor or vectors of length `channels` per channel. Raises ValueError when
        they are not finite.
        """
        if not (low.isfinite().all() and high.isfinite().all()):
            raise ValueError(f"a range has finite ends, not {low.tolist()} and {high.tolist()}")
        low = low.to(self.scale.device, torch.float64).reshape(self.scale.shape).clamp(max=0)
        high = high.to(self.scale.device, torch.float64).reshape(self.scale.shape).clamp(min=0)
        span = torch.maximum(-low, high) if self.symmetric else high - low
        steps = self.high if self.symmetric else self.high - self.low
        if self.power_of_two:
            span, steps = _next_power_of_two(span), 2 ** (self.bits - self.symmetric)
        # an all-zero channel has no range; any grid represents it exactly
        scale = torch.where(span > 0, span / steps, 1.0).clamp(min=torch.finfo(torch.float32).tiny)
        self.scale.copy_(scale)
        if not self.symmetric:
            self.zero_point.copy_((self.low - low / scale).round_().clamp_(self.low, self.high))
        self.observer = None
        self._ready = True

    def codes(self, x: Tensor) -> Tensor:
        """Return the integer codes of `x` as int8 (symmetric) or uint8 (affine)."""
        scale, zero_point = self._parameters_for(x)
        codes = integer_codes(x, scale, zero_point, self.low, self.high)
        return codes.to(torch.int8 if self.symmetric else torch.uint8)

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return x
        scale, zero_point = self._parameters_for(x)
        return fake_quantize(x, scale, zero_point, self.low, self.high)

    def _parameters_for(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self._ready:
            raise NotReadyError(
                f"{self} was called before it got a range: calibrate it, set_range it or load its state"
            )
        if self.axis is None:
            return self.scale, self.zero_point
        shape = [1] * x.dim()
        shape[self.axis] = -1
        return self.scale.view(shape), self.zero_point.view(shape)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._ready = bool(self.scale.isfinite().all())

    def extra_repr(self) -> str:
        scales = ", power-of-two scales" if self.power_of_two else ""
        return f"{self.dtype_name}, per {'tensor' if self.axis is None else 'channel'}{scales}"


def _next_power_of_two(x: Tensor) -> Tensor:
    """Return the least powers of two that are not below positive numbers, 0 for 0."""
    mantissa, exponent = torch.frexp(x)  # the mantissa is from 0.5 to below 1
    return torch.where(x > 0, torch.exp2((exponent - (mantissa == 0.5).int()).to(x.dtype)), 0.0)
