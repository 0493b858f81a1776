"""The steps of a policy: what each pass is told to do."""

from collections.abc import Mapping
from math import isfinite
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, WithJsonSchema

from fxcompress.policies.base import Strict, problem
from fxcompress.policies.reference import Reference
from fxcompress.policies.rules import Rule
from fxcompress.policies.step import RuleStep, Step
from fxcompress.policies.values import Bits, KernelSize, Sparsity


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


class Observer(Reference):
    """How the range of a tensor is found: `minmax`, `{percentile: {q: 99.99}}` or your own class."""

    @classmethod
    def known(cls) -> Mapping[str, type[Strict]]:
        return {"minmax": NoArguments, "percentile": Percentile}


class InputObserver(Observer):
    """How the range of an input is found: also `moving_average`, which follows the batches."""

    @classmethod
    def known(cls) -> Mapping[str, type[Strict]]:
        return {**super().known(), "moving_average": MovingAverage}


class WeightObserver(Observer):
    """How the range of a weight is found: also `mse`, the range whose grid has the least squared error."""

    @classmethod
    def known(cls) -> Mapping[str, type[Strict]]:
        return {**super().known(), "mse": NoArguments}


_BITS = "Bit-width 2 to 8, or float for no quantization; a list is open: the solver chooses"
_SYMMETRIC = "Signed codes around zero, or unsigned ones with a zero point"
_POWER_OF_TWO = "Scales are powers of two, for engines that shift instead of multiplying"


class WeightSpec(Strict):
    """How a weight is quantized."""

    bits: Annotated[Bits, Field(description=_BITS)] = "float"
    per: Annotated[
        Literal["channel", "tensor"], Field(description="One scale for each output channel, or one in all")
    ] = "channel"
    symmetric: Annotated[bool, Field(description=_SYMMETRIC)] = True
    power_of_two: Annotated[bool, Field(description=_POWER_OF_TWO)] = False
    observer: WeightObserver = WeightObserver(name="minmax")


class InputSpec(Strict):
    """How the tensor that enters an operator is quantized, with one scale for the tensor."""

    bits: Annotated[Bits, Field(description=_BITS)] = "float"
    symmetric: Annotated[bool, Field(description=_SYMMETRIC)] = False
    power_of_two: Annotated[bool, Field(description=_POWER_OF_TWO)] = False
    observer: InputObserver = InputObserver(name="minmax")


class FoldBatchNorm(Step):
    """Fold each batch norm into the convolution or linear layer before it."""

    kind: Literal["fold_batch_norm"] = "fold_batch_norm"


class QuantizeRule(Rule):
    """Quantize the weight of a layer, the tensor that enters it, or both."""

    weight: Annotated[WeightSpec | None, Field(description="How the weight is quantized")] = None
    input: Annotated[InputSpec | None, Field(description="How the tensor that enters is quantized")] = None


def _range(value: Any) -> tuple[float, float]:
    numbers = tuple(value) if isinstance(value, list | tuple) else ()
    real = all(isinstance(number, int | float) and isfinite(number) for number in numbers)
    if len(numbers) != 2 or not real or numbers[0] > numbers[1]:
        raise problem(f"{value!r} is not a range; write two numbers, [low, high]")
    return float(numbers[0]), float(numbers[1])


_RANGE_SCHEMA = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
Range: TypeAlias = Annotated[tuple[float, float], BeforeValidator(_range), WithJsonSchema(_RANGE_SCHEMA)]


class Quantize(RuleStep):
    """Put quantizers on weights and on the inputs of operators."""

    open_fields = ("weight.bits", "input.bits")
    weight_fields = ("weight",)
    kind: Literal["quantize"] = "quantize"
    rules: Annotated[tuple[QuantizeRule, ...], Field(description="What is quantized and how; the last match wins")]
    ranges: Annotated[
        dict[str, Range], Field(description="Known ranges of inputs by tensor; the others are calibrated")
    ] = {}


class PruneRule(Rule):
    """Set the weights of smallest magnitude to zero."""

    sparsity: Annotated[Sparsity, Field(description="Share of weights set to zero; a list is open")] = 0.0


class Prune(RuleStep):
    """Put masks on weights."""

    open_fields = ("sparsity",)
    weight_fields = ("sparsity",)
    kind: Literal["prune"] = "prune"
    rules: Annotated[tuple[PruneRule, ...], Field(description="What is pruned and how far; the last match wins")]


class SupernetRule(Rule):
    """Offer other kernel sizes for a convolution."""

    kernel_size: Annotated[KernelSize, Field(description="Odd kernel sizes; a list is open, one value decides")]


class Supernet(RuleStep):
    """Offer alternatives for a layer as a Choice."""

    open_fields = ("kernel_size",)
    kind: Literal["supernet"] = "supernet"
    rules: Annotated[tuple[SupernetRule, ...], Field(description="What is offered where; the last match wins")]


class Resolve(Step):
    """Replace Choices by the options taken."""

    kind: Literal["resolve"] = "resolve"
    choose: Annotated[
        dict[str, str], Field(min_length=1, description="The option to take for each Choice, by its name")
    ]
