"""Locking: the policy with every decision written into it, and the record of why."""

from collections.abc import Collection, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from torch import fx

from fxcompress.graph.coverage import coverage
from fxcompress.graph.edit import QUANTIZER_CHOICE
from fxcompress.graph.shapes import Shapes
from fxcompress.measure.calibrate import Range, Ranges
from fxcompress.measure.options import LayerOption, Picks, Survey, Surveyed, survey
from fxcompress.nn import DynamicQuantizer, Quantizer, UniformQuantizer
from fxcompress.planning.decide import Decided
from fxcompress.planning.prices import Price
from fxcompress.planning.resolved import Settings, resolved, without_resolved
from fxcompress.policies import Plan, Policy, Quantize, RuleStep, Step
from fxcompress.policies.policy import BudgetRecord, LayerRecord, Record, Search, Solution, Totals
from fxcompress.policies.rules import Matched, place
from fxcompress.version import VERSION

Said = Sequence[Sequence[Matched[Any]]]  # what the rules of each step matched


class Applied(NamedTuple):
    """What a step did: what its rules matched, and the names of the tensors that it quantized."""

    matched: Sequence[Matched[Any]]
    quantized: Collection[str]


def lock(
    policy: Policy,
    applied: Sequence[Applied],
    ranges: Ranges,
    gm: fx.GraphModule,
    original: Mapping[str, int],
    shapes: Shapes | None,
    decided: Decided | None,
) -> Plan:
    """Return the plan: the steps with a rule for each group of layers treated alike, known ranges, and the record."""
    layers, matched = survey(gm, shapes), [one.matched for one in applied]
    settings = resolved(policy.steps, matched, layers)
    for layer, fields in (decided.settings if decided else {}).items():
        settings.setdefault(layer, {}).update(fields)
    taken = _taken(ranges, decided.picks if decided else {})
    closed = (_close(step, one, settings, taken) for step, one in zip(policy.steps, applied, strict=True))
    record = _record(policy, matched, gm, layers, original, decided)
    steps = tuple(step for step in closed if step is not None)
    kept = {name: value for name, value in policy.stated().items() if name in ("tune", "target")}
    return Plan(version=policy.version, capture=coverage(gm).way, steps=steps, plan=record, **kept)


def _taken(ranges: Ranges, picks: Picks) -> dict[str, Range]:
    """Return the range of each activation for the option that its Choice took; float has none."""
    labels = {tensor: picks.get(f"{tensor}{QUANTIZER_CHOICE}") for tensor in ranges}
    return {tensor: found[labels[tensor]] for tensor, found in ranges.items() if labels[tensor] in found}


def _close(step: Step, applied: Applied, settings: Settings, ranges: Mapping[str, Range]) -> Step | None:
    closed = step.closed(applied.matched, settings)
    own = {name: found for name, found in ranges.items() if name in applied.quantized}
    if isinstance(step, Quantize) and own:
        return closed.replaced(ranges={**own, **step.ranges})
    return without_resolved(closed, settings)


def _record(
    policy: Policy,
    matched: Said,
    gm: fx.GraphModule,
    layers: Survey,
    original: Mapping[str, int],
    decided: Decided | None,
) -> Record:
    picks = decided.picks if decided else {}
    size, bops = Price("size", gm), Price("bops", gm) if "bops" in original else None
    reasons = _reasons(policy, matched, decided)
    unsaid = _Reason("no rule speaks of it")
    rows = [
        _row(one, one.option(picks), size, bops, reasons.get(name, unsaid))
        for name, one in layers.items()
        if one.layer.weight is not None
    ]
    return Record(
        fxcompress=VERSION,
        totals=Totals(
            **_parameters(rows),
            size=size.total(layers, picks),
            float_size=original["size"],
            bops=None if bops is None else bops.total(layers, picks),
            float_bops=original.get("bops"),
        ),
        layers=tuple(rows),
        matched=_matched(policy, matched),
        **({} if decided is None or policy.search is None else _solved(policy.search, original, decided)),
    )


def _parameters(rows: Sequence[LayerRecord]) -> dict[str, Any]:
    """Return how many weights there are and which share of them is zero."""
    parameters = sum(row.parameters for row in rows)
    zeros = sum(row.sparsity * row.parameters for row in rows)
    return {"parameters": parameters, "sparsity": round(zeros / max(parameters, 1), 6)}


def _matched(policy: Policy, matched: Said) -> dict[str, tuple[str, ...]]:
    return {
        _place(step, index): tuple(found.subject.name for found in said if index in found.by)
        for step, said in zip(policy.steps, matched, strict=True)
        if isinstance(step, RuleStep)
        for index in range(len(step.rules))
    }


def _place(step: RuleStep, index: int) -> str:
    """Name a rule by file and line; without the folder, so that a plan does not depend on where the policy lies."""
    return Path(place(step.rules[index], step.kind, index)).name


def _solved(search: Search, original: Mapping[str, int], decided: Decided) -> dict[str, Any]:
    """Return what the record says of the budgets and of the solver's answer."""
    allocation = decided.allocation
    budgets = {
        name: BudgetRecord(
            asked=budget.max,
            limit=decided.problem.budgets[name] + decided.fixed[name],
            predicted=allocation.costs[name] + decided.fixed[name],
            original=original.get(name, 0),
        )
        for name, budget in search.budgets.items()
    }
    solution = Solution(
        solver=search.solver.name,
        status=allocation.status,
        objective=allocation.objective,
        bound=allocation.bound,
        gap=allocation.gap,
    )
    return {"budgets": budgets, "solution": solution}


class _Reason(NamedTuple):
    """Why a layer is treated as it is, and what its decision is expected to lose."""

    why: str
    loss: float | None = None
    error: float | None = None


def _reasons(policy: Policy, matched: Said, decided: Decided | None) -> dict[str, _Reason]:
    reasons: dict[str, _Reason] = {}
    for step, said in zip(policy.steps, matched, strict=True):
        for subject, _, by in said:
            assert isinstance(step, RuleStep)
            reasons[subject.name] = _Reason(f"stated by {_place(step, by[-1])}")
    if decided is None:
        return reasons
    for decision, estimate in zip(decided.decisions, decided.estimates, strict=True):
        chosen = decided.allocation.chosen[decision.name]
        for layer in decision.layers:
            others = ", ".join(name for name in decision.layers if name != layer)
            why = decided.why[decision.name] + (f" (with {others})" if others else "")
            reasons[layer] = _Reason(why, estimate.rise[chosen], estimate.standard_error[chosen])
    return reasons


def _row(one: Surveyed, option: LayerOption, size: Price, bops: Price | None, reason: _Reason) -> LayerRecord:
    layer = one.layer
    expected = {} if reason.loss is None else {"expected_loss": reason.loss, "standard_error": reason.error}
    return LayerRecord(
        name=layer.name,
        kind=layer.kind,
        parameters=prod(option.weight_shape or ()) if option.stored_weights else 0,
        decision=_describe(option),
        sparsity=round(option.sparsity, 6),
        size=size.layer(layer, option),
        float_size=size.layer(layer, one.untouched),
        macs=option.macs,
        bops=None if bops is None else bops.layer(layer, option),
        float_bops=None if bops is None else bops.layer(layer, one.untouched),
        why=reason.why,
        **expected,
    )


def _describe(option: LayerOption) -> str:
    """Say how a layer runs in the field's short form, for example `W4A8, 50% sparse` or `W4 g128 A8 dynamic`."""
    weight, input = (_short(one) for one in (option.weight, option.input))
    space = " " if weight and input and not weight.isdigit() else ""
    short = (f"W{weight}" if weight else "") + space + (f"A{input}" if input else "")
    return ", ".join([short or "float", *([f"{option.sparsity:.0%} sparse"] if option.sparsity else [])])


def _short(quantizer: Quantizer | None) -> str:
    if quantizer is None:
        return ""
    name = str(quantizer.bits) if isinstance(quantizer, UniformQuantizer | DynamicQuantizer) else quantizer.dtype_name
    if quantizer.layout.per == "group":
        return f"{name} g{quantizer.layout.group_size}"
    return f"{name} dynamic" if isinstance(quantizer, DynamicQuantizer) else name
