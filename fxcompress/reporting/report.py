"""The report: what was done to each layer, why, at what price; as a terminal table and as JSON."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from fxcompress.errors import CompressError
from fxcompress.planning.holder import plan_of
from fxcompress.policies import Plan, read, show
from fxcompress.policies.policy import LayerRecord, Record, Totals

_WIDE = 160  # from this width on the reason stands in the table, else below it


@dataclass(frozen=True)
class Report:
    """What a plan records, to be printed, or read as plain data."""

    plan: Plan

    @property
    def record(self) -> Record:
        """Why the plan is what it is."""
        return self.plan.plan

    def rows(self) -> list[dict[str, Any]]:
        """Return a mapping for each layer: name, kind, parameters, shares of size and work, decision, loss, why."""
        return [_row(layer, self.record.totals) for layer in self.record.layers]

    def to_dict(self) -> dict[str, Any]:
        """Return the rows, the totals before and after, budgets, solution, target and tuning as plain data."""
        record = self.record
        return {
            "layers": self.rows(),
            "totals": record.totals.model_dump(),
            "budgets": {name: budget.plain() for name, budget in record.budgets.items()},
            "solution": record.solution and record.solution.model_dump(),
            "target": self.plan.target,
            "tune": [step.plain() for step in self.plan.tune],
            "matched": {rule: list(names) for rule, names in record.matched.items()},
        }

    def to_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def print(self, console: Console | None = None) -> None:
        """Print the report as a table."""
        console = console or Console()
        wide = console.width >= _WIDE
        console.print(_layer_table(self.record, wide))
        for layer in () if wide else self.record.layers:
            console.print(f"{layer.name}: {layer.why}", highlight=False, markup=False)
        for line in _summary(self.plan):
            console.print(line, highlight=False)


def report(source: nn.Module | Plan | str | os.PathLike[str]) -> Report:
    """Return the report of a compressed model, a plan, a plan's file, or the folder of a saved model.

    Raises CompressError when there is no plan in it.
    """
    if isinstance(source, nn.Module):
        return Report(plan_of(source))
    if not isinstance(source, Plan):
        path = Path(source)
        if not path.exists():
            raise CompressError(f"{path}: no such plan file or folder of a saved model")
        plan = read(path / "policy.yaml" if path.is_dir() else path)
        if not isinstance(plan, Plan):
            raise CompressError(f"{path} is a policy without decisions; fxcompress plan writes a plan")
        source = plan
    return Report(source)


def _row(layer: LayerRecord, totals: Totals) -> dict[str, Any]:
    share_of_work = (
        layer.float_bops / totals.float_bops if layer.float_bops is not None and totals.float_bops else None
    )
    return layer.model_dump() | {
        "share_of_size": layer.float_size / totals.float_size if totals.float_size else 0.0,
        "share_of_work": share_of_work,
    }


def _layer_table(record: Record, with_reasons: bool) -> Table:
    table = Table(title="What was done to each layer, and why", title_justify="left", row_styles=["", "dim"])
    for name in ("layer", "kind"):
        table.add_column(name, overflow="fold")
    for name in ("parameters", "share of size", "share of work"):
        table.add_column(name, justify="right")
    table.add_column("decision")
    table.add_column("expected loss", justify="right")
    if with_reasons:
        table.add_column("why", ratio=1)
    for layer in record.layers:
        row = _row(layer, record.totals)
        work = "-" if row["share_of_work"] is None else f"{row['share_of_work']:.1%}"
        loss = "-" if layer.expected_loss is None else f"{layer.expected_loss:.2g} ± {layer.standard_error:.1g}"
        cells = (
            layer.name,
            layer.kind,
            f"{layer.parameters:,}",
            f"{row['share_of_size']:.1%}",
            work,
            layer.decision,
            loss,
        )
        table.add_row(*cells, *([layer.why] if with_reasons else []))
    return table


def _summary(plan: Plan) -> list[str]:
    record, totals = plan.plan, plan.plan.totals
    lines = [_change("size", "size", totals.float_size, totals.size)]
    if totals.bops is not None and totals.float_bops:
        lines.append(_change("work", "bops", totals.float_bops, totals.bops))
    lines.append(f"sparsity  {totals.sparsity:.1%} of {totals.parameters:,} weights are zero")
    for name, budget in record.budgets.items():
        used = f"{show(name, budget.predicted)} of {show(name, budget.limit)}"
        lines.append(f"budget    {name} {budget.asked}: {used}")
    if record.solution is not None:
        s = record.solution
        lines.append(
            f"solution  {s.status} by {s.solver}: loss +{s.objective:.4g}, bound {s.bound:.4g}, gap {s.gap:.2%}"
        )
    if plan.target != "none":
        lines.append(f"target    {plan.target}")
    if plan.tune:
        lines.append(f"tuned by  {', '.join(step.name for step in plan.tune)}")
    return lines


def _change(name: str, budget: str, before: int, after: int) -> str:
    return f"{name:<9} {show(budget, before)} -> {show(budget, after)} ({after / max(before, 1):.1%})"
