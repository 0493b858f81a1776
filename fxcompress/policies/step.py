"""Steps: what every step of a policy has, and the steps that are made of rules."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from pydantic import field_validator

from fxcompress.policies.base import Strict, problem
from fxcompress.policies.rules import Matched, Rule, exactly, is_open

Settings = Mapping[str, Any]  # a layer's decided fields by path, for example {"weight.bits": 4}


class Step(Strict):
    """One step of a policy. A package adds its own by subclassing it and naming it `package.module:Class` as kind."""

    kind: str

    def closed(self, matched: Sequence[Matched[Any]], decided: Mapping[str, Settings]) -> Self:
        """Return the step with the open fields of its own replaced by what was decided for each layer."""
        return self

    def plain(self) -> Any:
        return {"kind": self.kind} | super().plain()

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> dict[str, Any]:
        schema: dict[str, Any] = handler.resolve_ref_schema(handler(core))
        schema["required"] = ["kind", *(name for name in schema.get("required", ()) if name != "kind")]
        schema["properties"]["kind"] = {"const": cls.model_fields["kind"].default, "description": "Which step it is"}
        if "rules" in schema["properties"]:
            schema["properties"]["rules"]["minItems"] = 1
        return schema


class RuleStep(Step):
    """A step made of rules.

    `open_fields` are the paths in a rule where a list may stand; `weight_fields` speak of weights, and so say nothing
    of an operator without one, or with one that is computed.
    """

    open_fields: ClassVar[tuple[str, ...]] = ()
    weight_fields: ClassVar[tuple[str, ...]] = ()
    rules: tuple[Rule, ...]

    @field_validator("rules", check_fields=False)
    @classmethod
    def _some(cls, value: tuple[Rule, ...]) -> tuple[Rule, ...]:
        if not value:
            raise problem("write at least one rule")
        return value

    def closed(self, matched: Sequence[Matched[Any]], decided: Mapping[str, Settings]) -> Self:
        """Return the step with one rule for each group of layers that are treated alike, every field decided."""
        said: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {}
        for subject, rule, _ in matched:
            has_weight = subject.weighted and not subject.computed
            silent = ("select", *(() if has_weight else self.weight_fields))
            fields = {name: _stated(value) for name, value in rule.stated().items() if name not in silent}
            for path, value in decided.get(subject.name, {}).items():
                head, _, leaf = path.partition(".")
                if leaf and head in fields:
                    fields[head][leaf] = value
                elif not leaf and head in type(rule).model_fields:
                    fields[head] = value
            for head, _, leaf in (path.partition(".") for path in self.open_fields):
                if leaf and head in fields and is_open(fields[head].get(leaf)):
                    del fields[head]  # nothing was there to decide, for example the input of an embedding
            if not fields:
                continue
            select = {} if subject.weighted else {"ops": (exactly(subject.kind),)}
            said.setdefault(repr((fields, select)), (fields, select, []))[2].append(exactly(subject.name))
        rule_type = type(self.rules[0])
        rules = (
            rule_type.model_validate({"select": {"names": tuple(names)} | select} | fields)
            for fields, select, names in said.values()
        )
        return self.replaced(rules=tuple(rules))


def _stated(value: Any) -> Any:
    return value.stated() if isinstance(value, Strict) else value
