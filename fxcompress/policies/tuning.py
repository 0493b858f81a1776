"""Tuning: what is done with data after calibration, before anything is trained."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from fxcompress.policies.base import Strict
from fxcompress.policies.reference import Reference

_ITERATIONS = "Steps of Adam for each part"
_BATCH = "Samples in each step"
_REGULARIZATION = "Weight of the term that drives each rounding to up or down"
_WARM_UP = "Share of the iterations without that term"
_SEED = "Seed of the choice of samples"


class SmoothQuant(Strict):
    """Arguments of SmoothQuant."""

    alpha: Annotated[float, Field(ge=0, le=1, description="How much of the difficulty moves to the weights")] = 0.5


class BiasCorrection(Strict):
    """Arguments of bias correction."""

    statistics: Annotated[
        Literal["data", "batch_norm"],
        Field(description="Where the mean input of a layer is from: measured on data, or told by its batch norm"),
    ] = "data"


class AdaRound(Strict):
    """Arguments of AdaRound."""

    iterations: Annotated[int, Field(ge=1, description=_ITERATIONS)] = 2000
    learning_rate: Annotated[float, Field(gt=0, description="Learning rate of the roundings")] = 1e-2
    batch_size: Annotated[int, Field(ge=1, description=_BATCH)] = 32
    regularization: Annotated[float, Field(ge=0, description=_REGULARIZATION)] = 0.01
    warm_up: Annotated[float, Field(ge=0, lt=1, description=_WARM_UP)] = 0.2
    seed: Annotated[int, Field(description=_SEED)] = 0


class BlockReconstruction(AdaRound):
    """Arguments of block reconstruction."""

    scale_learning_rate: Annotated[
        float,
        Field(ge=0, description="Share by which a step may change the scales of activations at first; 0 keeps them"),
    ] = 1e-2


class Gptq(Strict):
    """Arguments of GPTQ."""

    block_size: Annotated[int, Field(ge=1, description="Columns whose errors are passed on together")] = 128
    damping: Annotated[float, Field(gt=0, description="Share of the mean diagonal that is added to it")] = 0.01
    act_order: Annotated[bool, Field(description="Round the columns with the largest inputs first")] = False


class Tuning(Reference):
    """One step of tuning: `bias_correction`, `{ada_round: {iterations: 2000}}` or your own function."""

    @classmethod
    def known(cls) -> Mapping[str, type[Strict]]:
        return {
            "smooth_quant": SmoothQuant,
            "bias_correction": BiasCorrection,
            "ada_round": AdaRound,
            "block_reconstruction": BlockReconstruction,
            "gptq": Gptq,
        }
