"""Locking: the policy with every decision written into it, and the record of why."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from fxcompress.graph import Layer, layers
from fxcompress.graph.shapes import Shapes
from fxcompress.measure.calibrate import Ranges
from fxcompress.measure.costs import LayerOption, bops, option_of, size
from fxcompress.planning.decide import Decided
from fxcompress.planning.prices import cost, total_cost
from fxcompress.policies import Plan, Policy, Quantize, RuleStep, Step
from fxcompress.policies.policy import BudgetRecord, LayerRecord, Record, Solution, Totals
from fxcompress.policies.rules import Matched
from fxcompress.version import VERSION


def lock(
    policy: Policy,
    matched: Sequence[Sequence[Matched[Any]]],
    ranges: Ranges,
    gm: fx.GraphModule,
    original: Mapping[str, int],
    shapes: Shapes | None,
    decided: Decided | None,
) -> Plan:
    """Return the plan: the steps with one rule for each group of layers treated alike, known ranges, and the record."""
    settings = decided.settings if decided else {}
    steps = [_close(step, said, settings, ranges) for step, said in zip(policy.steps, matched, strict=True)]
    record = _record(policy, matched, gm, original, shapes, decided)
    return Plan(version=policy.version, steps=tuple(steps), plan=record)


def _close(step: Step, matched: Sequence[Matched[Any]], settings: Mapping[str, Any], ranges: Ranges) -> Step:
    closed = step.closed(matched, settings)
    return closed.replaced(ranges=ranges | step.ranges) if isinstance(step, Quantize) and ranges else closed


def _record(
    policy: Policy,
    matched: Sequence[Sequence[Matched[Any]]],
    gm: fx.GraphModule,
    original: Mapping[str, int],
    shapes: Shapes | None,
    decided: Decided | None,
) -> Record:
    picks = decided.picks if decided else {}
    said_by = _said_by(policy, matched)
    rows = tuple(_row(gm, layer, picks, shapes, decided, said_by) for layer in layers(gm) if layer.weight is not None)
    parameters = sum(row.parameters for row in rows)
    totals = Totals(
        parameters=parameters,
        sparsity=round(sum(row.sparsity * row.parameters for row in rows) / max(parameters, 1), 6),
        size=total_cost("size", gm, picks, shapes),
        float_size=original["size"],
        bops=None if shapes is None else total_cost("bops", gm, picks, shapes),
        float_bops=original.get("bops"),
    )
    rules = {
        rule.at or f"{step.kind} rule {index + 1}": tuple(m.subject.name for m in said if index in m.by)
        for step, said in zip(policy.steps, matched, strict=True)
        for index, rule in enumerate(step.rules if isinstance(step, RuleStep) else ())
    }
    if decided is None or policy.search is None:
        return Record(fxcompress=VERSION, totals=totals, layers=rows, matched=rules)
    allocation = decided.allocation
    return Record(
        fxcompress=VERSION,
        totals=totals,
        layers=rows,
        matched=rules,
        budgets={
            name: BudgetRecord(
                asked=budget.max,
                limit=decided.problem.budgets[name] + decided.fixed[name],
                predicted=allocation.costs[name] + decided.fixed[name],
                original=original.get(name, 0),
            )
            for name, budget in policy.search.budgets.items()
        },
        solution=Solution(
            solver=policy.search.solver.name,
            status=allocation.status,
            objective=allocation.objective,
            bound=allocation.bound,
            gap=allocation.gap,
        ),
    )


def _said_by(policy: Policy, matched: Sequence[Sequence[Matched[Any]]]) -> dict[str, str]:
    """Return for each layer the last rule that speaks of it."""
    said: dict[str, str] = {}
    for step, found in zip(policy.steps, matched, strict=True):
        for subject, _, by in found:
            assert isinstance(step, RuleStep)
            said[subject.name] = f"stated by {step.rules[by[-1]].at or f'{step.kind} rule {by[-1] + 1}'}"
    return said


def _row(
    gm: fx.GraphModule,
    layer: Layer,
    picks: Mapping[str, str],
    shapes: Shapes | None,
    decided: Decided | None,
    said_by: Mapping[str, str],
) -> LayerRecord:
    option = option_of(gm, layer, picks, shapes)
    untouched = LayerOption(macs=option.macs)
    found = next((i for i, d in enumerate(decided.decisions) if layer.name in d.layers), None) if decided else None
    loss: dict[str, Any] = {}
    reason = said_by.get(layer.name, "no rule speaks of it")
    if decided is not None and found is not None:
        decision, chosen = decided.decisions[found], decided.allocation.chosen[decided.decisions[found].name]
        estimate = decided.estimates[found]
        loss = {"expected_loss": estimate.rise[chosen], "standard_error": estimate.standard_error[chosen]}
        together = (
            f" (with {', '.join(n for n in decision.layers if n != layer.name)})" if len(decision.layers) > 1 else ""
        )
        reason = decided.why[decision.name] + together
    return LayerRecord(
        name=layer.name,
        kind=layer.kind,
        parameters=0 if layer.tied else layer.weight_tensor(gm).numel(),
        decision=_describe(option),
        sparsity=round(option.sparsity, 6),
        size=cost("size", gm, [layer], picks, shapes),
        float_size=size(gm, layer, untouched),
        macs=option.macs,
        bops=None if shapes is None else cost("bops", gm, [layer], picks, shapes),
        float_bops=None if shapes is None else bops(gm, layer, untouched),
        why=reason,
        **loss,
    )


def _describe(option: LayerOption) -> str:
    """Say how a layer runs, for example `int4 weight, uint8 input, 50% sparse`."""
    parts = [f"{option.weight.dtype_name} weight" if option.weight else "float weight"]
    parts += [f"{option.input.dtype_name} input"] if option.input else []
    parts += [f"{option.sparsity:.0%} sparse"] if option.sparsity else []
    return ", ".join(parts)
