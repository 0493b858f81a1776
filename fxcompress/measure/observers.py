"""Observers: how the range of a tensor is found from what flows through it."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from fxcompress.measure.observing.aciq import Aciq
from fxcompress.measure.observing.entropy import Entropy
from fxcompress.measure.observing.percentile import Percentile
from fxcompress.measure.observing.ranges import MinMax, MovingAverage
from fxcompress.measure.observing.squared_error import MeanSquaredError


class Observer(Protocol):
    """What calibration needs: `observe` sees a tensor of shape (channels, values), `range` tells (low, high).

    Both ends are vectors of length `channels`; a tensor with one scale has one channel. An observer whose answer
    depends on the quantizer, for example on its bits, has `range_for(quantizer)` too, which is asked instead.
    """

    def observe(self, x: Tensor) -> None: ...
    def range(self) -> tuple[Tensor, Tensor]: ...


OBSERVERS: Mapping[str, Callable[..., Any]] = {
    "minmax": MinMax,
    "moving_average": MovingAverage,
    "percentile": Percentile,
    "entropy": Entropy,
    "mse": MeanSquaredError,
    "aciq": Aciq,
}
