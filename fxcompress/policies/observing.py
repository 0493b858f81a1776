"""Observers as a policy names them: how the range of a tensor is found, with their arguments."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from fxcompress.policies.base import Strict
from fxcompress.policies.reference import Reference


class NoArguments(Strict):
    """No arguments."""


class MovingAverage(Strict):
    """Arguments of the moving average observer."""

    momentum: Annotated[float, Field(ge=0, lt=1, description="Share of the former average that a batch leaves")] = (
        0.99
    )


class Percentile(Strict):
    """Arguments of the percentile observer."""

    q: Annotated[float, Field(gt=50, le=100, description="Clip at this percentile of |x|, for example 99.99")] = 99.99


class MeanSquaredError(Strict):
    """Arguments of the squared error observer."""

    exponent: Annotated[float, Field(ge=1, le=8, description="The power of errors that is least in sum")] = 2.0


class Aciq(Strict):
    """Arguments of the ACIQ observer."""

    prior: Annotated[
        Literal["laplace", "gauss"], Field(description="The distribution that values are taken to have")
    ] = "laplace"


class WeightObserver(Reference):
    """How the range of a tensor is found: `minmax`, `{percentile: {q: 99.99}}`, `mse` or your own class."""

    @classmethod
    def known(cls) -> Mapping[str, type[Strict]]:
        return {
            "minmax": NoArguments,
            "percentile": Percentile,
            "entropy": NoArguments,
            "mse": MeanSquaredError,
            "aciq": Aciq,
        }


class InputObserver(WeightObserver):
    """How the range of an input is found: also `moving_average`, which follows the batches."""

    @classmethod
    def known(cls) -> Mapping[str, type[Strict]]:
        return {**super().known(), "moving_average": MovingAverage}
