"""The quantize step: which weights and inputs get a quantizer, and of which form."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from fxcompress.policies.base import Strict, problem, problem_at
from fxcompress.policies.observing import InputObserver, WeightObserver
from fxcompress.policies.quantizing_schema import input_conditions, weight_conditions
from fxcompress.policies.rules import Matched, Rule, is_open
from fxcompress.policies.step import RuleStep, Settings
from fxcompress.policies.values import SIGNS, GroupSize, InputBits, WeightBits

_BITS = "2 to 8 bits, 16, {}e4m3 or e5m2 (8-bit floats), or float for none; a list is open: the solver chooses"
_SYMMETRIC = "Signed codes around zero, or unsigned ones with a zero point"
_NARROW = "Leave out the lowest code; by default symmetric codes do and others do not"
_POWER_OF_TWO = "Scales are powers of two, for engines that shift instead of multiplying"
_EVEN_STEPS = ("symmetric", "narrow", "power_of_two")


class _Spec(Strict):
    """What weights and inputs have in common: bits, and fields that speak of some bits and not of others."""

    bits: Any
    strict: ClassVar[tuple[str, ...]] = ()  # fields that must suit all bits of a list; for others one is enough

    def unheard(self, field: str, bits: int | str) -> str:
        """Say why a field means nothing for these bits beside the other fields; an empty text where it does."""
        words = field in _EVEN_STEPS and isinstance(bits, str)
        return f"is for whole numbers of bits, not for {bits!r}" if words else ""

    def meaningless(self, field: str) -> str:
        """Say why a field means nothing beside the others, for none of the bits; an empty text where it does."""
        options = self.bits if is_open(self.bits) else (self.bits,)
        said = [self.unheard(field, bits) for bits in options if bits != "float"] or [self.unheard(field, 4)]
        return next(filter(None, said), "") if field in self.strict or all(said) else ""

    def decided(self, fields: Mapping[str, Any]) -> Self:
        """Return the spec with some fields decided, and without those that then mean nothing."""
        new = self.replaced(**fields)
        if is_open(new.bits):
            return new
        heard = {
            field: value
            for field, value in new.stated().items()
            if field == "bits" or (new.bits != "float" and not new.meaningless(field))
        }
        return type(self).model_validate(heard)


class WeightSpec(_Spec):
    """How a weight is quantized."""

    strict = ("codebook", "allocate")
    model_config = ConfigDict(json_schema_extra=weight_conditions)
    bits: Annotated[WeightBits, Field(description=_BITS.format("binary, ternary, "))] = "float"
    per: Annotated[
        Literal["channel", "tensor", "group"],
        Field(description="One scale for each output channel, one in all, or one for each group in a channel"),
    ] = "channel"
    group_size: Annotated[
        GroupSize, Field(description="How many consecutive input weights share a scale; a list is open")
    ] = 128
    symmetric: Annotated[bool, Field(description=_SYMMETRIC)] = True
    narrow: Annotated[bool | None, Field(description=_NARROW)] = None
    power_of_two: Annotated[bool, Field(description=_POWER_OF_TWO)] = False
    codebook: Annotated[
        Literal["apot", "kmeans"] | None,
        Field(description="Uneven levels: additive powers of two, or the centroids of the weights"),
    ] = None
    allocate: Annotated[
        bool, Field(description="The bits are those of all channels on average: wide ones get more, up to 8")
    ] = False
    observer: WeightObserver = WeightObserver(name="minmax")

    def codebook_of(self, bits: int | str) -> str | None:
        """Return the codebook that a weight of these bits has."""
        return None if isinstance(bits, str) or bits > 8 else self.codebook

    def allocates(self, bits: int | str) -> bool:
        """Return whether these bits are those of all channels on average."""
        return self.allocate and self.per == "channel" and not (isinstance(bits, str) or bits > 8 or self.codebook)

    def unheard(self, field: str, bits: int | str) -> str:
        codebook = self.codebook_of(bits)
        if field == "allocate" and self.allocate and (why := self._allocates_nothing(bits)):
            return why
        if field == "codebook" and self.codebook and not codebook:
            return f"{self.codebook} takes 2 to 8 bits, not {bits!r}"
        if field == "group_size" and self.per != "group":
            return f"is for 'per: group', not for 'per: {self.per}'"
        if field == "observer" and bits in SIGNS:
            return f"finds a range, and bits {bits!r} have none: the weight itself gives the levels"
        if field in _EVEN_STEPS and codebook:
            return f"is for even steps, not for codebook {codebook}"
        if field == "observer" and codebook == "kmeans":
            return "finds a range, and codebook kmeans has none: the weight itself gives the levels"
        if field == "per" and codebook == "kmeans" and self.per != "tensor":
            return f"{self.per} is not for codebook kmeans, one for the whole weight; take it out, or write tensor"
        return super().unheard(field, bits)

    def _allocates_nothing(self, bits: int | str) -> str:
        """Say why channels cannot get bits of their own; an empty text where they can."""
        if isinstance(bits, str) or bits > 8:
            return f"takes 2 to 8 bits, not {bits!r}"
        if is_open(self.bits):
            return f"takes one number of bits, not the list {list(self.bits)}"
        if self.codebook:
            return f"is for even steps, not for codebook {self.codebook}"
        return "" if self.per == "channel" else f"is for 'per: channel', not for 'per: {self.per}'"


class InputSpec(_Spec):
    """How the tensor that enters an operator is quantized, with one scale for the tensor or for each token."""

    strict = ("dynamic",)
    model_config = ConfigDict(json_schema_extra=input_conditions)
    bits: Annotated[InputBits, Field(description=_BITS.format(""))] = "float"
    symmetric: Annotated[bool, Field(description=_SYMMETRIC)] = False
    narrow: Annotated[bool | None, Field(description=_NARROW)] = None
    power_of_two: Annotated[bool, Field(description=_POWER_OF_TWO)] = False
    dynamic: Annotated[bool, Field(description="The range is that of each call; nothing is calibrated")] = False
    per: Annotated[
        Literal["tensor", "token"],
        Field(description="One scale in all, or one for each vector along the last axis (with 'dynamic: true')"),
    ] = "tensor"
    observer: InputObserver = InputObserver(name="minmax")

    def unheard(self, field: str, bits: int | str) -> str:
        if field == "dynamic" and self.dynamic and isinstance(bits, str):
            return f"is for whole numbers of bits, not for {bits!r}"
        if field == "observer" and self.dynamic:
            return "finds a range beforehand, and 'dynamic: true' takes that of each call; take one of them out"
        if field == "per" and self.per == "token" and not self.dynamic:
            return "token needs 'dynamic: true'"
        return super().unheard(field, bits)


class QuantizeRule(Rule):
    """Quantize the weight of a layer, the tensor that enters it, or both."""

    weight: Annotated[WeightSpec | None, Field(description="How the weight is quantized")] = None
    input: Annotated[InputSpec | None, Field(description="How the tensor that enters is quantized")] = None

    def specs(self) -> list[tuple[str, WeightSpec | InputSpec]]:
        """Return what is stated of the weight and of the input, with the name of the field."""
        return [(head, spec) for head, spec in (("weight", self.weight), ("input", self.input)) if spec is not None]

    def decided(self, settings: Settings) -> Self:
        """Return the rule with some fields, by path, decided."""
        fields: dict[str, Any] = {}
        for head, spec in self.specs():
            said = {path.removeprefix(f"{head}."): v for path, v in settings.items() if path.startswith(f"{head}.")}
            fields[head] = spec.decided(said)
        return self.replaced(**fields)


def _range(value: Any) -> tuple[float, float]:
    numbers = tuple(value) if isinstance(value, list | tuple) else ()
    real = all(isinstance(number, int | float) and isfinite(number) for number in numbers)
    if len(numbers) != 2 or not real or numbers[0] > numbers[1]:
        raise problem(f"{value!r} is not a range; write two numbers, [low, high]")
    return float(numbers[0]), float(numbers[1])


_RANGE_SCHEMA = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
Target: TypeAlias = Literal["none", "onnxruntime", "openvino"]
Range: TypeAlias = Annotated[tuple[float, float], BeforeValidator(_range), WithJsonSchema(_RANGE_SCHEMA)]


_NEEDS = {("weight", "group_size"): ("per", "group"), ("input", "per"): ("dynamic", True)}


class Quantize(RuleStep):
    """Put quantizers on weights and on the inputs of operators."""

    open_fields = ("weight.bits", "weight.group_size", "input.bits")
    weight_fields = ("weight",)
    kind: Literal["quantize"] = "quantize"
    rules: Annotated[tuple[QuantizeRule, ...], Field(description="What is quantized and how; the last match wins")]
    target: Annotated[
        Target | None, Field(description="The engine that will run this; by default the target of the policy")
    ] = None
    ranges: Annotated[
        dict[str, Range], Field(description="Known ranges of inputs by tensor; the others are calibrated")
    ] = {}

    @model_validator(mode="after")
    def _every_field_means_something(self) -> Self:
        for index, (head, spec) in ((i, one) for i, rule in enumerate(self.rules) for one in rule.specs()):
            for field in spec.stated():
                why = spec.meaningless(field)
                if why and not self._another_rule_helps(head, field, spec):
                    raise problem_at(("rules", index, head, field), f"{field} {why}")
        return self

    def _another_rule_helps(self, head: str, field: str, spec: WeightSpec | InputSpec) -> bool:
        """Return whether a rule says what a field of this one needs, where this one is silent about it."""
        needed, value = _NEEDS.get((head, field), ("", None))
        if not needed or needed in spec.stated():
            return False
        said = [one.stated().get(needed) for rule in self.rules for name, one in rule.specs() if name == head]
        return value in said

    def closed(self, matched: Sequence[Matched[Any]], decided: Mapping[str, Settings]) -> Self:
        """Return the step with every open field decided, and without fields that mean nothing for what was chosen."""
        return super().closed(
            [one._replace(rule=one.rule.decided(decided.get(one.subject.name, {}))) for one in matched], decided
        )
