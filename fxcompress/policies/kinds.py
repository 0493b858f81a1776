"""Kinds: which step a mapping in a policy stands for; a bare kind is ours, a dotted one is the user's own."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Discriminator, SerializeAsAny, Tag, ValidationInfo

from fxcompress.errors import PolicyError
from fxcompress.policies.base import nearest, problem, problem_at
from fxcompress.policies.quantizing import Quantize
from fxcompress.policies.reference import DOTTED_PATTERN, check_allowed, is_dotted, load_attribute
from fxcompress.policies.step import Step
from fxcompress.policies.steps import Equalize, FoldBatchNorm, Prune, Resolve, SplitChannels, Supernet

BUILT_IN: Mapping[str, type[Step]] = {
    "fold_batch_norm": FoldBatchNorm,
    "equalize": Equalize,
    "split_channels": SplitChannels,
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
        raise problem("a step is a mapping with a kind, for example 'kind: quantize'")
    if is_dotted(kind):
        return _third_party(kind, value, info)
    if kind not in BUILT_IN:
        raise problem_at(
            ("kind",),
            f"unknown kind {kind!r}{nearest(kind, BUILT_IN)}; accepted: {', '.join(BUILT_IN)}, or your own as "
            "package.module:Class",
        )
    return value


def _third_party(kind: str, value: dict[str, Any], info: ValidationInfo) -> Step:
    check_allowed(kind, info)
    try:
        step_type = load_attribute(kind)
    except PolicyError as error:
        raise problem_at(("kind",), str(error)) from None
    if not (isinstance(step_type, type) and issubclass(step_type, Step)):
        raise problem_at(("kind",), f"{kind!r} is not a subclass of fxcompress.policies.Step")
    return step_type.model_validate(value, context=info.context)


def _tag(value: Any) -> str:
    kind = value.kind if isinstance(value, Step) else value["kind"]
    return kind if kind in BUILT_IN else "third_party"


class _StepSchema:
    """Describes a step for editors: discriminated by its kind, with third-party kinds and kinds without arguments."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> dict[str, Any]:
        *ours, _ = handler(core)["oneOf"]
        own = {
            "type": "object",
            "description": "A step of your own: package.module:Class, with its arguments",
            "properties": {"kind": {"type": "string", "pattern": DOTTED_PATTERN, "description": "Your class"}},
            "required": ["kind"],
        }
        alone = [kind for kind, step in BUILT_IN.items() if list(step.model_fields) == ["kind"]]
        bare = {
            "type": "string",
            "description": "A step without arguments",
            "anyOf": [{"enum": alone}, {"pattern": DOTTED_PATTERN}],
        }
        return {"oneOf": [*ours, own, bare]}


AnyStep: TypeAlias = Annotated[
    Annotated[FoldBatchNorm, Tag("fold_batch_norm")]
    | Annotated[Equalize, Tag("equalize")]
    | Annotated[SplitChannels, Tag("split_channels")]
    | Annotated[Quantize, Tag("quantize")]
    | Annotated[Prune, Tag("prune")]
    | Annotated[Supernet, Tag("supernet")]
    | Annotated[Resolve, Tag("resolve")]
    | Annotated[SerializeAsAny[Step], Tag("third_party")],
    Discriminator(_tag),
    BeforeValidator(_with_kind),
    _StepSchema,
]
