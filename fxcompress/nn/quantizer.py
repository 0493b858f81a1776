"""The Quantizer: rounds the tensor on one edge of the graph; what all its forms have in common."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from fxcompress.errors import NotReadyError
from fxcompress.nn.layout import Layout

SCALE_BYTES = 4  # a scale or a level is stored as float32


class Quantizer(nn.Module, ABC):
    """Quantize and dequantize the tensor on an edge, in the form of the subclass.

    `bits` is the width of a code, `layout` tells which elements share a scale. All state is in buffers; `scale`
    (float32, of the layout's shape) is NaN until the range is known. `enabled = False` lets the tensor pass unchanged
    (a run-time switch like `training`, not saved). `observer` is what calibration finds the range with.
    The gradient is that of the straight-through estimator. Raises NotReadyError when called before `set_range`, `fit`
    or a loaded state has made it ready.
    """

    scale: Tensor

    def __init__(self, bits: int, layout: Layout) -> None:
        super().__init__()
        self.bits, self.layout = bits, layout
        self.enabled = True
        self.observer: Any = None
        self._ready = False  # what isfinite(scale) says, kept in Python: asking the tensor would cost every call

    @property
    def ready(self) -> bool:
        """Whether the range is known."""
        return self._ready

    @property
    def axis(self) -> int | None:
        """The axis of the output channels, None where one scale serves the whole tensor or a token."""
        return self.layout.axis

    @property
    def needs_range(self) -> bool:
        """Whether `set_range` makes it ready, not `fit` or nothing at all."""
        return True

    @property
    def integer(self) -> bool:
        """Whether engines compute with its codes: uniform, at most 8 bits, fixed scales per tensor or per channel."""
        return False

    @property
    def precision(self) -> int | str:
        """The policy's word for it: 4, 16, `ternary`, `e4m3`, ..."""
        return self.bits

    @property
    @abstractmethod
    def dtype_name(self) -> str:
        """The name of the type of its codes, for example `int4`, `ternary` or `float8_e4m3`."""

    @abstractmethod
    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Set the scales so that the levels span `low` .. `high`, both of one value for each scale.

        Raises ValueError when they are not finite, or when the form takes no range.
        """

    def round_between(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Return `x` rounded to the levels that would span `low` .. `high`, which broadcast against it.

        The ranges hold zero. Raises ValueError when the form takes no range.
        """
        raise ValueError(f"{self} takes no range")

    @abstractmethod
    def stored_bytes(self, numel: int) -> int:
        """Return the bytes that `numel` packed codes take in a file with their scales, zero points and levels."""

    @abstractmethod
    def _round(self, x: Tensor) -> Tensor:
        """Return `x` rounded, in its shape and dtype."""

    def forget_range(self) -> None:
        """Make the quantizer not ready again, as it was before calibration."""
        self.scale.fill_(torch.nan)
        self._ready = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return x
        self._refuse_unready()
        return self._round(x)

    def _refuse_unready(self) -> None:
        if not self._ready:
            raise NotReadyError(
                f"{self} was called before it got a range: calibrate it, set_range it or load its state"
            )

    def _finite_ends(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ends of a range in float64 and in the shape of the scales, widened to hold zero."""
        if not (low.isfinite().all() and high.isfinite().all()):
            raise ValueError(f"a range has finite ends, not {low.tolist()} and {high.tolist()}")
        low, high = (end.to(self.scale.device, torch.float64).reshape(self.scale.shape) for end in (low, high))
        return low.clamp(max=0), high.clamp(min=0)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._ready = all(bool(buffer.isfinite().all()) for buffer in self.buffers())

    def _get_name(self) -> str:  # one word for all forms in the text of a graph
        return "Quantizer"

    def extra_repr(self) -> str:
        return f"{self.dtype_name}, {self.layout}"
