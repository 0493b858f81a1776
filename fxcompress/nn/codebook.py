"""The CodebookQuantizer: a table of levels, uneven or fewer than bits would give, times a scale."""

import torch
from torch import Tensor

from fxcompress.nn.functional import scale_to, straight_through
from fxcompress.nn.layout import Layout
from fxcompress.nn.levels import apot, kmeans, midpoints
from fxcompress.nn.packing import packed_bytes
from fxcompress.nn.quantizer import SCALE_BYTES, Quantizer

_BITS = {"binary": 1, "ternary": 2}
_THRESHOLD = 0.7  # of the mean magnitude: below it a ternary weight is zero


class CodebookQuantizer(Quantizer):
    """Replace each value by a level of a table: scale * levels[code].

    - binary (XNOR-Net, Rastegari et al. 2016): the sign, 1 for zero, times the mean of abs(x). The gradient passes
      where abs(x) <= 1.
    - ternary (TWN, Li et al. 2016): the sign where abs(x) > 0.7 of its mean, else 0, times the mean of these abs(x).
      The gradient passes everywhere.
    - apot (Li et al. 2020): sums of powers of two (`fxcompress.nn.levels.apot`) times the end of the range. The
      gradient passes inside the levels.
    - kmeans (Deep Compression, Han et al. 2016): 2^bits centroids of all values; the scale is 1. The gradient passes
      inside the levels.

    `fit` makes binary, ternary and kmeans ready, `set_range` apot. The buffers are `scale`, `levels` (k,), ascending,
    and `boundaries`, where the upper of two levels begins: (k - 1,) in units of the scale for apot and of the values
    for the others, (scales, 2) for ternary. `bits` are given for apot and kmeans, 2 to 8; kmeans is per tensor. NaN
    stays NaN.
    """

    levels: Tensor
    boundaries: Tensor

    def __init__(self, form: str, bits: int | None = None, *, layout: Layout | None = None) -> None:
        layout = layout or Layout()
        if form in _BITS and bits is None:
            bits = _BITS[form]
        elif form not in ("apot", "kmeans") or bits is None or not 2 <= bits <= 8:
            raise ValueError(
                f"a codebook is binary, ternary, or apot or kmeans of 2 to 8 bits, not {form} of {bits} bits"
            )
        if form == "kmeans" and layout.per != "tensor":
            raise ValueError(f"kmeans is one codebook for the whole tensor, not {layout}")
        super().__init__(bits, layout)
        self.form = form
        levels = self._fixed_levels()
        cuts = midpoints(levels)
        self.register_buffer("scale", torch.full(layout.shape, torch.nan))
        self.register_buffer("levels", levels.float())
        scales = self.scale.numel()
        self.register_buffer("boundaries", (cuts.expand(scales, 2) if form == "ternary" else cuts).float().clone())

    def _fixed_levels(self) -> Tensor:
        if self.form == "binary":
            return torch.tensor([-1.0, 1.0], dtype=torch.float64)
        if self.form == "kmeans":
            return torch.zeros(2**self.bits, dtype=torch.float64)
        return apot(self.bits)  # with 2 bits -1, 0 and 1: ternary too

    @property
    def needs_range(self) -> bool:
        return self.form == "apot"

    @property
    def precision(self) -> int | str:
        return self.form if self.form in _BITS else self.bits

    @property
    def dtype_name(self) -> str:
        return self.form if self.form in _BITS else f"{self.form}{self.bits}"

    @torch.no_grad()
    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Set the scale so that the levels of apot end at the largest magnitude of `low` .. `high`.

        `low` and `high` have one value for each scale. Raises ValueError when they are not finite, and for the forms
        that `fit` sets.
        """
        self._refuse_fitted()
        self.scale.copy_(scale_to(*self._finite_ends(low, high), 1.0))
        self._ready = True

    def round_between(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Return `x` rounded to the levels of apot that would span `low` .. `high`, around zero, which broadcast.

        Raises ValueError for the forms that `fit` sets.
        """
        self._refuse_fitted()
        scale = scale_to(low, high, 1.0).to(x)
        return self.levels.to(x)[self._places(x / scale)] * scale

    def _refuse_fitted(self) -> None:
        if not self.needs_range:
            raise ValueError(f"{self} takes no range: its levels are those of the weight, fit(weight)")

    @torch.no_grad()
    def fit(self, weight: Tensor) -> None:
        """Set levels and scales for a weight. Raises ValueError for apot, or when the weight is not finite."""
        if self.needs_range:
            raise ValueError(f"{self} has fixed levels and takes a range: set_range(low, high)")
        if not weight.isfinite().all():
            raise ValueError(f"{self} cannot be fitted to a weight that holds NaN or infinity")
        if self.form == "kmeans":
            levels = kmeans(weight, 2**self.bits)
            self.levels.copy_(levels)
            self.boundaries.copy_(_up_to_single(midpoints(levels)))
            self.scale.fill_(1.0)
        else:
            magnitude = weight.double().abs()
            rows, counts = self.layout.rows(magnitude), self.layout.rows(torch.ones_like(magnitude)).sum(1)
            mean = rows.sum(1) / counts.clamp(min=1)
            self.scale.copy_((self._fit_ternary(rows, mean) if self.form == "ternary" else mean).view_as(self.scale))
        self._ready = True

    def _fit_ternary(self, rows: Tensor, mean: Tensor) -> Tensor:
        """Set the boundaries from the magnitudes and their mean, and return the scales."""
        threshold = _THRESHOLD * mean
        lower = _up_to_single(-threshold)
        self.boundaries.copy_(torch.stack([lower, torch.nextafter(-lower, torch.full_like(lower, torch.inf))], dim=1))
        kept = rows > threshold.unsqueeze(1)
        return (rows * kept).sum(1) / kept.sum(1).clamp(min=1)

    def stored_bytes(self, numel: int) -> int:
        """Return the bytes of packed codes, scales and levels; signs need no levels, and kmeans no scale."""
        scales = 0 if self.form == "kmeans" else self.scale.numel()
        levels = 0 if self.form in _BITS else self.levels.numel()
        return packed_bytes(numel, self.bits) + (scales + levels) * SCALE_BYTES

    def codes(self, x: Tensor) -> Tensor:
        """Return the places of the levels of `x` in the table as uint8."""
        self._refuse_unready()
        return self.layout.unrows(self._places(self._rows(x)), x).to(torch.uint8)

    def _round(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            rows = self._rows(x)
            value = self.levels[self._places(rows)] * self.scale.reshape(-1, 1)
            value = torch.where(rows.isnan(), rows, value)
            value = self.layout.unrows(value, x).to(x.dtype)
        return straight_through(x, value, self._inside(x))

    def _rows(self, x: Tensor) -> Tensor:
        """Return the rows of `x` in the units of the boundaries."""
        rows = self.layout.rows(x.to(torch.promote_types(x.dtype, self.scale.dtype)))
        return rows / self.scale.reshape(-1, 1) if self.form == "apot" else rows

    def _places(self, rows: Tensor) -> Tensor:
        return torch.searchsorted(self.boundaries.to(rows.dtype), rows.contiguous(), right=True)

    def _inside(self, x: Tensor) -> Tensor | None:
        """Return where the gradient passes, None for everywhere."""
        if self.form == "ternary":
            return None
        if self.form == "binary":
            return x.abs() <= 1
        scale = self.layout.spread(self.scale, x)
        return (x >= self.levels[0] * scale) & (x <= self.levels[-1] * scale)


def _up_to_single(x: Tensor) -> Tensor:
    """Return the least float32 numbers that are not below float64 ones."""
    single = x.float()
    return torch.where(single.double() < x, torch.nextafter(single, torch.full_like(single, torch.inf)), single)
