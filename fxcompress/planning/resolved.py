"""What resolve steps have decided, written into the rules that were open."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fxcompress.graph.edit import tensor_of_choice
from fxcompress.measure.options import LayerOption, Survey
from fxcompress.policies import Prune, Quantize, Resolve, Step, Supernet
from fxcompress.policies.rules import Matched, is_open

Settings = dict[str, dict[str, Any]]  # decided fields of each layer, in the policy's words


def resolved(steps: Sequence[Step], matched: Sequence[Sequence[Matched[Any]]], layers: Survey) -> Settings:
    """Return the fields that resolve steps have decided, read from the layers as they stand after all steps."""
    taken = {name: label for step in steps if isinstance(step, Resolve) for name, label in step.choose.items()}
    said: Settings = {}
    for step, found in zip(steps, matched, strict=True) if taken else ():
        for subject, rule, _ in found:
            fields = _kernel(rule, taken.get(f"{subject.name}_choice")) if isinstance(step, Supernet) else {}
            if isinstance(step, Quantize | Prune) and subject.name in layers:
                fields = dict(_standing(step, rule, layers[subject.name].option({})))
            said.setdefault(subject.name, {}).update(fields)
    return said


def without_resolved(step: Step, settings: Mapping[str, Mapping[str, Any]]) -> Step | None:
    """Return a resolve step without the Choices that the rules now decide, None where nothing is left of it."""
    if not isinstance(step, Resolve):
        return step
    decided = {f"{name}_choice" for name, fields in settings.items() if "kernel_size" in fields}
    left = {n: label for n, label in step.choose.items() if tensor_of_choice(n) is None and n not in decided}
    return step.replaced(choose=left) if left else None


def _kernel(rule: Any, label: str | None) -> dict[str, Any]:
    for size in rule.kernel_size if is_open(rule.kernel_size) else ():
        if f"kernel_{size}" == label:
            return {"kernel_size": size}
    return {}


def _standing(step: Quantize | Prune, rule: Any, option: LayerOption) -> Iterator[tuple[str, Any]]:
    """Yield each open field of a rule with the value that the layer has."""
    if isinstance(step, Prune):
        if is_open(rule.sparsity):  # a mask holds whole elements: the nearest share is the one it was made for
            yield "sparsity", min(rule.sparsity, key=lambda share: abs(share - option.sparsity))
        return
    for field, quantizer in (("weight", option.weight), ("input", option.input)):
        spec = getattr(rule, field)
        if spec is None:
            continue
        if is_open(spec.bits):
            yield f"{field}.bits", "float" if quantizer is None else quantizer.precision
        if quantizer is not None and quantizer.layout.per == "group" and is_open(spec.group_size):
            yield f"{field}.group_size", quantizer.layout.group_size
