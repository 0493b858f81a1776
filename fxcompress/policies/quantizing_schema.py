"""The conditions of the quantize step in JSON Schema: fields that mean nothing beside each other."""

from typing import Any

from fxcompress.policies.values import FLOAT8, SIGNS


def _stated(meaning: str, **fields: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a mapping in which these fields are stated with such values."""
    described = {name: {"description": meaning, **field} for name, field in fields.items()}
    return {"required": list(fields), "properties": described}


def _never(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"not": {"allOf": list(parts)}}


def _nothing_but(*values: Any) -> dict[str, Any]:
    """Return the schema of a field that is one of these values, or a list of nothing else."""
    return {"anyOf": [{"enum": list(values)}, {"type": "array", "items": {"enum": list(values)}}]}


def _has(*values: Any) -> dict[str, Any]:
    """Return the schema of a field that is one of these values, or a list in which one of them stands."""
    return {"anyOf": [{"enum": list(values)}, {"type": "array", "contains": {"enum": list(values)}}]}


_EVEN_STEPS = {"anyOf": [{"required": [field]} for field in ("symmetric", "narrow", "power_of_two")]}
_CODEBOOK = _stated("A codebook", codebook={"type": "string"})
_KMEANS = _stated("The codebook kmeans", codebook={"const": "kmeans"})
_ALLOCATE = _stated("Bits for each channel", allocate={"const": True})
_NOT_ALLOCATED = {"anyOf": [{"enum": [16, *SIGNS, *FLOAT8]}, {"type": "array"}]}
_DYNAMIC = _stated("A dynamic range", dynamic={"const": True})

weight_conditions: dict[str, Any] = {
    "allOf": [
        _never({"required": ["group_size"]}, _stated("No groups", per={"enum": ["channel", "tensor"]})),
        _never(_EVEN_STEPS, _stated("Bits without even steps", bits=_nothing_but(*SIGNS, *FLOAT8))),
        _never(_EVEN_STEPS, _CODEBOOK),
        _never(_CODEBOOK, _stated("Bits without a codebook", bits=_has(16, *SIGNS, *FLOAT8))),
        _never({"required": ["observer"]}, _stated("Bits without a range", bits=_nothing_but(*SIGNS))),
        _never({"required": ["observer"]}, _KMEANS),
        _never(_KMEANS, _stated("Several scales", per={"enum": ["channel", "group"]})),
        _never(_ALLOCATE, _stated("Bits for all channels alike", bits=_NOT_ALLOCATED)),
        _never(_ALLOCATE, _stated("Not a scale for each channel", per={"enum": ["tensor", "group"]})),
        _never(_ALLOCATE, _CODEBOOK),
    ]
}
input_conditions: dict[str, Any] = {
    "allOf": [
        _never(_EVEN_STEPS, _stated("Bits without even steps", bits=_nothing_but(*FLOAT8))),
        _never({"required": ["observer"]}, _DYNAMIC),
        _never(_DYNAMIC, _stated("Bits that are not dynamic", bits=_has(*FLOAT8))),
        _never(_stated("Tokens", per={"const": "token"}), _stated("A fixed range", dynamic={"const": False})),
    ]
}
