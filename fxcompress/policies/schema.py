"""The JSON Schema of policy files, with which editors complete and check them."""

from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from fxcompress.policies.base import plain
from fxcompress.policies.policy import Policy


class _Generate(GenerateJsonSchema):
    """Write defaults as a policy file would, and no titles that only repeat the key."""

    def encode_default(self, dft: Any) -> Any:
        return plain(dft)

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of policies and plans."""
    described = Policy.model_json_schema(schema_generator=_Generate)
    plan = {"type": "object", "description": "What was decided, why and at what price; written by fxcompress.plan"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **described,
        "title": "fxcompress policy",
        "properties": {**described["properties"], "plan": plan},
    }
