"""The steps of a policy: what each pass is told to do."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    SerializeAsAny,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from fxcompress.policies.base import Strict, nearest
from fxcompress.policies.reference import Reference, check_allowed, is_dotted, load_attribute
from fxcompress.policies.rules import Matched, Rule, Select, exactly, open_to

Settings = Mapping[str, Any]  # a layer's decided fields by path, for example {"weight.bits": 4}


class Step(Strict):
    """One step of a policy. A package adds its own by subclassing it and naming it `package.module:Class` as kind."""

    kind: str

    def closed(self, matched: Sequence[Matched[Any]], decided: Mapping[str, Settings]) -> Self:
        """Return the step with the open fields of its own replaced by what was decided for each layer."""
        return self

    def plain(self) -> Any:
        return {"kind": self.kind} | super().plain()


class NoArguments(Strict):
    """No arguments."""


class Percentile(Strict):
    """Arguments of the percentile observer."""

    q: Annotated[float, Field(gt=50, le=100, description="Clip at this percentile of |x|, e.g. 99.99")] = 99.99


class Observer(Reference):
    """How the range of a tensor is found: `minmax`, `{percentile: {q: 99.99}}` or your own class."""

    @classmethod
    def known(cls) -> Mapping[str, type[Strict]]:
        return {"minmax": NoArguments, "percentile": Percentile}


def _bits(value: Any) -> Any:
    if value == "float" or (isinstance(value, int) and not isinstance(value, bool) and 2 <= value <= 8):
        return value
    raise ValueError(f"{value!r} bits are not accepted; write a whole number from 2 to 8, or 'float'")


def _sparsity(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1:
        return float(value)
    raise ValueError(f"a sparsity of {value!r} is not accepted; write the share of zeros, from 0.0 to below 1.0")


def _kernel_size(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0 and value % 2 == 1:
        return value
    raise ValueError(f"a kernel size of {value!r} is not accepted; write a positive odd number such as 1, 3 or 5")


Bits = open_to(_bits, {"anyOf": [{"type": "integer", "minimum": 2, "maximum": 8}, {"const": "float"}]})
Sparsity = open_to(_sparsity, {"type": "number", "minimum": 0, "exclusiveMaximum": 1})
KernelSize = open_to(_kernel_size, {"type": "integer", "minimum": 1})
_BITS = "Bit-width 2 to 8, or float for no quantization; a list is open: the solver chooses"


class WeightSpec(Strict):
    """How a weight is quantized."""

    bits: Annotated[Bits, Field(description=_BITS)] = "float"
    per: Annotated[Literal["channel", "tensor"], Field(description="One scale per output channel or one in all")] = (
        "channel"
    )
    symmetric: Annotated[bool, Field(description="Signed codes around zero, or unsigned with a zero point")] = True
    observer: Observer = Observer(name="minmax")


class InputSpec(Strict):
    """How the tensor that enters an operator is quantized, with one scale per tensor."""

    bits: Annotated[Bits, Field(description=_BITS)] = "float"
    symmetric: Annotated[bool, Field(description="Signed codes around zero, or unsigned with a zero point")] = False
    observer: Observer = Observer(name="minmax")


class RuleStep(Step):
    """A step made of rules.

    `open_fields` are the paths in a rule where a list may stand; `weight_fields` speak of weights, and so say nothing of
    an operator without one.
    """

    open_fields: ClassVar[tuple[str, ...]] = ()
    weight_fields: ClassVar[tuple[str, ...]] = ()
    rules: tuple[Rule, ...]

    @field_validator("rules", check_fields=False)
    @classmethod
    def _some(cls, value: tuple[Rule, ...]) -> tuple[Rule, ...]:
        if not value:
            raise PydanticCustomError("rules", "write at least one rule", {})
        return value

    def closed(self, matched: Sequence[Matched[Any]], decided: Mapping[str, Settings]) -> Self:
        """Return the step with one rule for each group of layers that are treated alike, every field decided."""
        said: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {}
        for subject, rule, _ in matched:
            silent = ("select", *(() if subject.weighted else self.weight_fields))
            fields = {name: _plain(value) for name, value in rule.stated().items() if name not in silent}
            for path, value in decided.get(subject.name, {}).items():
                head, _, leaf = path.partition(".")
                if leaf and head in fields:
                    fields[head][leaf] = value
                elif not leaf and head in type(rule).model_fields:
                    fields[head] = value
            select = {} if subject.weighted else {"ops": (exactly(subject.kind),)}
            said.setdefault(repr((fields, select)), (fields, select, []))[2].append(exactly(subject.name))
        rule_type = type(self.rules[0])
        rules = (
            rule_type.model_validate({"select": {"names": tuple(names)} | select} | fields)
            for fields, select, names in said.values()
        )
        return self.replaced(rules=tuple(rules))


def _plain(value: Any) -> Any:
    return value.stated() if isinstance(value, Strict) else value


class FoldBatchNorm(Step):
    """Fold each batch norm into the convolution or linear layer before it."""

    kind: Literal["fold_batch_norm"] = "fold_batch_norm"


class QuantizeRule(Rule):
    """Quantize the weight of a layer, the tensor that enters it, or both."""

    weight: WeightSpec | None = None
    input: InputSpec | None = None


class Quantize(RuleStep):
    """Put quantizers on weights and on the inputs of operators."""

    open_fields = ("weight.bits", "input.bits")
    weight_fields = ("weight",)
    kind: Literal["quantize"] = "quantize"
    rules: tuple[QuantizeRule, ...]
    ranges: Annotated[
        dict[str, tuple[float, float]],
        Field(description="Known ranges of inputs by tensor; the others are calibrated"),
    ] = {}

    @field_validator("ranges")
    @classmethod
    def _ordered(cls, value: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        for name, (low, high) in value.items():
            if not low <= high:
                raise PydanticCustomError("range", "the range of {name} is not [low, high]", {"name": name})
        return value


class PruneRule(Rule):
    """Set the weights of smallest magnitude to zero."""

    sparsity: Annotated[Sparsity, Field(description="Share of weights set to zero; a list is open")] = 0.0


class Prune(RuleStep):
    """Put masks on weights."""

    open_fields = ("sparsity",)
    kind: Literal["prune"] = "prune"
    rules: tuple[PruneRule, ...]


class SupernetRule(Rule):
    """Offer other kernel sizes for a convolution."""

    kernel_size: Annotated[KernelSize, Field(description="Odd kernel sizes; a list is open, one value decides")]


class Supernet(RuleStep):
    """Offer alternatives for a layer as a Choice."""

    open_fields = ("kernel_size",)
    kind: Literal["supernet"] = "supernet"
    rules: tuple[SupernetRule, ...]


class Resolve(Step):
    """Replace Choices by the options taken."""

    kind: Literal["resolve"] = "resolve"
    choose: Annotated[
        dict[str, str], Field(min_length=1, description="The option to take for each Choice, by its name")
    ]


BUILT_IN: Mapping[str, type[Step]] = {
    "fold_batch_norm": FoldBatchNorm,
    "quantize": Quantize,
    "prune": Prune,
    "supernet": Supernet,
    "resolve": Resolve,
}


def _with_kind(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, Step):
        return value
    if isinstance(value, str):
        value = {"kind": value}
    kind = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(kind, str):
        raise PydanticCustomError("step", "a step is a mapping with a kind, for example 'kind: quantize'", {})
    if is_dotted(kind):
        return _third_party(kind, value, info)
    if kind not in BUILT_IN:
        raise PydanticCustomError(
            "unknown_kind",
            "unknown kind '{kind}'{hint}; accepted: {accepted}, or your own as package.module:Class",
            {"kind": kind, "hint": nearest(kind, BUILT_IN), "accepted": ", ".join(BUILT_IN)},
        )
    return value


def _third_party(kind: str, value: dict[str, Any], info: ValidationInfo) -> Step:
    check_allowed(kind, info)
    step_type = load_attribute(kind)
    if not (isinstance(step_type, type) and issubclass(step_type, Step)):
        raise PydanticCustomError("step", "'{kind}' is not a subclass of fxcompress.policies.Step", {"kind": kind})
    try:
        return step_type.model_validate(value, context=info.context)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "step"
        raise PydanticCustomError("step", "{place}: {reason}", {"place": place, "reason": first["msg"]}) from None


def _tag(value: Any) -> str:
    kind = value.kind if isinstance(value, Step) else value["kind"]
    return kind if kind in BUILT_IN else "third_party"


AnyStep = Annotated[
    Annotated[FoldBatchNorm, Tag("fold_batch_norm")]
    | Annotated[Quantize, Tag("quantize")]
    | Annotated[Prune, Tag("prune")]
    | Annotated[Supernet, Tag("supernet")]
    | Annotated[Resolve, Tag("resolve")]
    | Annotated[SerializeAsAny[Step], Tag("third_party")],
    Discriminator(_tag),
    BeforeValidator(_with_kind),
]
