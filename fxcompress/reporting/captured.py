"""What a capture saw: each layer with shapes and work, the way taken, and what is not seen; as table and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import fx, nn

from fxcompress.graph.coverage import Coverage, Unseen, coverage
from fxcompress.graph.edit import get_tensor, parameter_under
from fxcompress.graph.layers import Layer, layers
from fxcompress.graph.regions import Islands, regions
from fxcompress.graph.shapes import Shape, Shapes, flowing_in, macs
from fxcompress.graph.ties import memory
from fxcompress.reporting.wording import from_here, of_macs, percent, place_of, shape_text

_ANY = 10_000  # a width at which nothing is cut


@dataclass(frozen=True)
class Row:
    """A layer, with the shapes of its first run; without inputs those of what flows are None, as work and share are.

    `parameters` are those of weight and bias that no layer before has, `macs` the multiply-accumulates of all runs,
    `share` their part of the whole model's. `calls` is how often it runs, or without inputs at how many places it is
    called. `tied_to` is the name of the parameter that it shares with a layer before.
    """

    name: str
    kind: str
    weight_shape: Shape | None
    input_shape: Shape | None
    output_shape: Shape | None
    parameters: int
    macs: int | None
    share: float | None
    calls: int
    tied_to: str | None


@dataclass(frozen=True)
class Part:
    """Parameters and multiply-accumulates of a part of the model; these are None without inputs."""

    parameters: int
    macs: int | None

    def without(self, other: "Part") -> "Part":
        """Return what is left of a part without another."""
        rest = None if self.macs is None or other.macs is None else self.macs - other.macs
        return Part(self.parameters - other.parameters, rest)


@dataclass(frozen=True)
class Captured:
    """What a capture saw of a model, to be printed, or read as plain data; `regions` are the paths of islands."""

    model: str
    rows: tuple[Row, ...]
    regions: tuple[str, ...]
    coverage: Coverage

    def parts(self) -> dict[str, Part]:
        """Return `layers`, `other` operators of the graph and `unseen`, which add up to `all`."""
        seen = self.coverage
        whole, known = Part(seen.parameters, seen.macs), Part(seen.seen_parameters, seen.seen_macs)
        work = [row.macs for row in self.rows if row.macs is not None]
        in_layers = Part(sum(row.parameters for row in self.rows), sum(work) if len(work) == len(self.rows) else None)
        return {"layers": in_layers, "other": known.without(in_layers), "unseen": whole.without(known), "all": whole}

    def to_dict(self) -> dict[str, Any]:
        """Return the layers, the sums, the way with those tried before it, and what is not seen, as plain data."""
        return {
            "model": self.model,
            "way": self.coverage.way,
            "share": self.coverage.share,
            "regions": list(self.regions),
            "layers": [asdict(row) for row in self.rows],
            "totals": {name: asdict(part) for name, part in self.parts().items()},
            "unseen": [asdict(one) for one in self.coverage.unseen],
            "tried": [asdict(one) for one in self.coverage.tried],
        }

    def to_json(self) -> str:
        """Return what was captured as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def print(self, console: Console | None = None) -> None:
        """Print the layers as a table, then the way taken and what is not seen; a narrow table has fewer shapes."""
        console = console or Console()
        table = _table(self, ("weight", "input", "output"))
        fits = console.measure(table, options=console.options.update(width=_ANY)).maximum <= console.width
        console.print(table if fits else _table(self, ("output",)))
        for line in _summary(self):
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def captured(gm: fx.GraphModule, known: Shapes | None = None) -> Captured:
    """Return what the capture that made `gm` saw, with shapes and work if they are known.

    Raises CaptureError for a module that `capture` did not make.
    """
    seen = coverage(gm)
    counted: set[Any] = set()
    rows = tuple(_row(gm, layer, known, seen.macs, counted) for layer in layers(gm))
    paths = tuple(region.path for region in regions(gm)) if isinstance(gm, Islands) else ()
    return Captured(type(gm).__name__, rows, paths, seen)


def _row(gm: fx.GraphModule, layer: Layer, known: Shapes | None, all_macs: int | None, counted: set[Any]) -> Row:
    work = None if known is None else macs(gm, layer, known)
    runs = {call: known[call] for call in layer.calls if known is not None and call in known}
    first = next(iter(runs), None)
    return Row(
        name=layer.name,
        kind=layer.kind,
        weight_shape=None if layer.weight is None else tuple(layer.weight_tensor(gm).shape),
        input_shape=known.get(flowing_in(layer, first), [None])[0] if known and first else None,
        output_shape=runs[first][0] if first else None,
        parameters=_parameters(gm, layer, counted),
        macs=work,
        share=work / all_macs if work is not None and all_macs else None,
        calls=len(layer.calls) if known is None else sum(map(len, runs.values())),
        tied_to=layer.owner if layer.tied else None,
    )


def _parameters(gm: fx.GraphModule, layer: Layer, counted: set[Any]) -> int:
    """Return the parameters of a layer that are not counted yet, and count them."""
    names = [parameter_under(gm, edge) for edge in layer.weight_edges() + layer.bias_edges()]
    tensors = [get_tensor(gm, name) for name in names if name is not None]
    new = {memory(tensor): tensor.numel() for tensor in tensors if isinstance(tensor, nn.Parameter)}
    total = sum(count for key, count in new.items() if key not in counted)
    counted.update(new)
    return total


def _table(found: Captured, flows: Sequence[str]) -> Table:
    table = Table(title=f"The layers of {found.model}", title_justify="left", row_styles=["", "dim"])
    for name in ("layer", "kind"):
        table.add_column(name, overflow="fold")
    for name in (*flows, "calls", "parameters", "MACs", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in found.rows:
        sizes = [shape_text(getattr(row, f"{flow}_shape")) for flow in flows]
        table.add_row(row.name, row.kind, *sizes, str(row.calls), *_numbers(row, found.coverage))
    table.add_section()
    for key, label in {"other": "others", "unseen": "not seen", "all": "all"}.items():
        table.add_row(label, *[""] * (len(flows) + 2), *_numbers(found.parts()[key], found.coverage))
    return table


def _numbers(one: Row | Part, seen: Coverage) -> tuple[str, str, str]:
    return f"{one.parameters:,}", "-" if one.macs is None else f"{one.macs:,}", percent(one.macs, seen.macs)


def _summary(found: Captured) -> list[str]:
    seen, count = found.coverage, len(found.regions)
    graphs = f"{count} region{'s' if count > 1 else ''}, between which the model's own Python runs"
    return [
        f"way    {seen.way}: {graphs if found.regions else 'one graph of the whole model'}",
        f"seen   {of_macs(seen.seen_macs, seen)}{percent(seen.seen_parameters, seen.parameters)} of the parameters",
        *(f"tried  {one.way}: {from_here(one.reason)}" for one in seen.tried),
        *(f"tied   {row.name} has the weight {row.tied_to}" for row in found.rows if row.tied_to is not None),
        *(line for one in seen.unseen for line in _advice(one, seen)),
    ]


def _advice(one: Unseen, seen: Coverage) -> tuple[str, ...]:
    name = one.name or "the model itself"
    return (
        f"not seen: {name} ({one.kind}), {of_macs(one.macs, seen)}{one.parameters:,} parameters",
        f"  where   {place_of(one) or 'not known'}",
        f"  why     {one.reason.replace(f' at {one.place} ({one.line})', '')}",
        f"  change  {one.advice}",
    )
