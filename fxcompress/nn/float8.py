"""The Float8Quantizer: floating-point codes of 8 bits, scaled to a range."""

import torch
from torch import Tensor

from fxcompress.nn.functional import scale_to, straight_through
from fxcompress.nn.layout import Layout
from fxcompress.nn.quantizer import SCALE_BYTES, Quantizer

# The type, and where its values end: half a step above the largest, up to where values round to it.
_FORMS = {"e4m3": (torch.float8_e4m3fn, 448.0 + 16.0), "e5m2": (torch.float8_e5m2, 57344.0 + 4096.0)}


class Float8Quantizer(Quantizer):
    """Quantize and dequantize to 8-bit floats: S * float8(clip(x / S, -max, max)), rounded half to even.

    `form` is e4m3 (max 448, no infinity) or e5m2 (max 57344), the types of Micikevicius et al. 2022. The scale is
    S = max(-low, high) / max: the end of the range becomes the largest code. What lies beyond saturates, as in ONNX
    QuantizeLinear. The gradient passes where nothing saturates.
    """

    def __init__(self, form: str, *, layout: Layout | None = None) -> None:
        if form not in _FORMS:
            raise ValueError(f"a float8 Quantizer is e4m3 or e5m2, not {form!r}")
        super().__init__(8, layout or Layout())
        self.form = form
        self.dtype, self._end = _FORMS[form]
        self.high: float = torch.finfo(self.dtype).max
        self.register_buffer("scale", torch.full(self.layout.shape, torch.nan))

    @property
    def precision(self) -> str:
        return self.form

    @property
    def dtype_name(self) -> str:
        return f"float8_{self.form}"

    @torch.no_grad()
    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Set the scale so that the largest magnitude of `low` .. `high` becomes the largest code.

        `low` and `high` have one value for each scale. Raises ValueError when they are not finite.
        """
        self.scale.copy_(scale_to(*self._finite_ends(low, high), self.high))
        self._ready = True

    def round_between(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Return `x` rounded to the codes that would span `low` .. `high`, ranges around zero that broadcast."""
        scale = scale_to(low, high, self.high).to(x)
        return self._codes(x / scale).to(x.dtype) * scale

    def stored_bytes(self, numel: int) -> int:
        """Return the bytes of the codes and the scales."""
        return numel + self.scale.numel() * SCALE_BYTES

    def codes(self, x: Tensor) -> Tensor:
        """Return the codes of `x` as a tensor of the float8 type."""
        self._refuse_unready()
        return self._codes(self._divided(x, self.layout.spread(self.scale, x)))

    def _round(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = self.layout.spread(self.scale, x)
            divided = self._divided(x, scale)
            value = self._codes(divided).to(divided.dtype) * scale
        return straight_through(x, value.to(x.dtype), divided.abs() < self._end)

    def _divided(self, x: Tensor, scale: Tensor) -> Tensor:
        return x.to(torch.promote_types(x.dtype, scale.dtype)) / scale

    def _codes(self, divided: Tensor) -> Tensor:
        return divided.clamp(-self.high, self.high).to(self.dtype)  # torch makes NaN of what overflows
