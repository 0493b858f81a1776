"""A captured graph as a picture: an SVG file with a box for each operator, each below those that it reads."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ElementTree, SubElement

from torch import fx

from fxcompress.graph.coverage import Coverage, Unseen, coverage
from fxcompress.graph.regions import regions
from fxcompress.graph.shapes import Shapes
from fxcompress.reporting.arrange import Arranged, Edge, Size, arrange
from fxcompress.reporting.boxes import Contents, Line, contents
from fxcompress.reporting.wording import of_macs, percent, place_of
from fxcompress.staging import staged

_LINE, _LETTER, _PAD, _MARGIN = 17.0, 7.3, 9.0, 24.0
_LONGEST = 90  # letters in a line; what is cut stands in the tooltip
_STYLE = """
text { font: 12px ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace; fill: #1d2733 }
.title { font-weight: bold }
.paper { fill: #fff }
.operator { fill: #fff; stroke: #8795a5 }
.layer { fill: #e3eefc; stroke: #4a7fc1 }
.end { fill: #e9f6ea; stroke: #5a9a62 }
.Quantizer { fill: #ffe3c2; stroke: #d58a2c }
.Mask { fill: #eadcf7; stroke: #9464bd }
.Choice { fill: #fdf3b4; stroke: #b9a21f }
.unseen { fill: #e4e4e4; stroke: #9a9a9a }
.region { fill: none; stroke: #9aa6b2; stroke-dasharray: 5 4 }
.edge { fill: none; stroke: #6b7886 }
.arrow { fill: #6b7886 }
"""


def draw(gm: fx.GraphModule, path: str | os.PathLike[str], known: Shapes | None = None) -> None:
    """Write the graph of a captured model as an SVG file, whole or not at all; with the shapes in it, if known.

    Parameters stand in the box of the operator that reads them, with what passes put on them; regions of islands have
    frames, and modules that are not seen are grey. Raises CaptureError for a module that `capture` did not make.
    """
    file, picture = Path(path), _picture(gm, known)
    with staged(file.parent, file.name) as folder:
        ElementTree(picture).write(folder / file.name, encoding="utf-8", xml_declaration=True)


def _picture(gm: fx.GraphModule, known: Shapes | None) -> Element:
    picture = Element("svg", xmlns="http://www.w3.org/2000/svg")
    SubElement(picture, "style").text = _STYLE
    marker = {"viewBox": "0 0 8 8", "refX": "7", "refY": "4", "markerWidth": "8", "markerHeight": "8"}
    arrow = SubElement(SubElement(picture, "defs"), "marker", marker, id="arrow", orient="auto")
    _add(arrow, "path", "arrow", d="M0 0 8 4 0 8z")
    _add(picture, "rect", "paper", width="100%", height="100%")
    right, bottom = 0.0, _MARGIN
    for box in _head(type(gm).__name__, coverage(gm)):
        _draw_box(picture, box, _MARGIN, bottom)
        size = _size(box)
        right, bottom = max(right, size.width), bottom + size.height + _PAD
    boxes = contents(gm, known)
    for region in regions(gm):
        shown = {node: boxes[node] for node in region.nodes if node in boxes}
        sources = {node: [source for source in node.all_input_nodes if source in shown] for node in shown}
        placed = arrange(sources, {node: _size(box) for node, box in shown.items()})
        size = _draw_region(picture, region.path, placed, shown, bottom + _PAD)
        right, bottom = max(right, size.width), bottom + _PAD + size.height
    width, height = f"{right + 2 * _MARGIN:.0f}", f"{bottom + _MARGIN:.0f}"
    picture.attrib |= {"width": width, "height": height, "viewBox": f"0 0 {width} {height}"}
    return picture


def _head(name: str, seen: Coverage) -> list[Contents]:
    """Return what stands above the graph: the share of the model that it holds, and each module that it does not."""
    shares = f"{of_macs(seen.seen_macs, seen)}{percent(seen.seen_parameters, seen.parameters)} of the parameters"
    boxes = [Contents([Line(f"{name}, captured by {seen.way}"), Line(f"seen: {shares}")], "paper")]
    if seen.unseen:
        boxes.append(Contents([Line("not seen"), *(Line(_told(one, seen)) for one in seen.unseen)], "unseen"))
    return boxes


def _told(one: Unseen, seen: Coverage) -> str:
    share = percent(one.macs, seen.macs) if seen.macs else percent(one.parameters, seen.parameters)
    return " · ".join((one.name or "the model itself", one.kind, share, place_of(one)))


def _draw_region(
    picture: Element, path: str, placed: Arranged, shown: Mapping[fx.Node, Contents], top: float
) -> Size:
    """Draw a region below `top`, in a frame if it is not the whole model; returns its size."""
    size, left, head = placed.size, 0.0, 0.0
    if path:
        left, head = _PAD, _LINE + _PAD
        size = Size(max(size.width, len(path) * _LETTER) + 2 * _PAD, size.height + head + _PAD)
        _rectangle(picture, "region", _MARGIN, top, size)
        _write(picture, path, _MARGIN + _PAD, top + _LINE, "title")
    group = _add(picture, "g", transform=f"translate({_MARGIN + left:.1f} {top + head:.1f})")
    for edge in placed.edges:
        _draw_edge(group, edge)
    for node, box in shown.items():
        _draw_box(group, box, placed.boxes[node].x, placed.boxes[node].y)
    return size


def _draw_edge(group: Element, edge: Edge) -> None:
    (x, y), (to_x, to_y) = edge.start, edge.end
    half = (edge.bottom + to_y) / 2
    curve = f"C{x:.1f} {half:.1f} {to_x:.1f} {half:.1f} {to_x:.1f} {to_y:.1f}"
    path = _add(group, "path", "edge", d=f"M{x:.1f} {y:.1f}V{edge.bottom:.1f}{curve}")
    if edge.ends:
        path.set("marker-end", "url(#arrow)")


def _draw_box(parent: Element, box: Contents, left: float, top: float) -> None:
    group = _add(parent, "g")
    if box.layer:
        group.set("data-layer", box.layer)
    SubElement(group, "title").text = "\n".join(_printable(line.text) for line in box.lines)
    _rectangle(group, box.style, left, top, _size(box))
    top += _PAD / 2
    for index, line in enumerate(box.lines):
        if line.style:
            _rectangle(group, line.style, left + _PAD / 2, top + 1, Size(_width(line) + _PAD, _LINE - 2))
        _write(group, line.text, left + _PAD, top + 13, "" if index else "title")
        top += _LINE


def _size(box: Contents) -> Size:
    return Size(max(map(_width, box.lines)) + 2 * _PAD, len(box.lines) * _LINE + _PAD)


def _width(line: Line) -> float:
    return len(_cut(line.text)) * _LETTER


def _rectangle(parent: Element, style: str, x: float, y: float, size: Size) -> None:
    _add(parent, "rect", style, x=x, y=y, width=size.width, height=size.height, rx=4)


def _write(parent: Element, text: str, x: float, y: float, style: str) -> None:
    _add(parent, "text", style, x=x, y=y).text = _cut(text)


def _add(parent: Element, tag: str, style: str = "", **attributes: Any) -> Element:
    shown = {name: f"{value:.1f}" if isinstance(value, float) else str(value) for name, value in attributes.items()}
    return SubElement(parent, tag, {"class": style} | shown if style else shown)


def _cut(text: str) -> str:
    """Return a line as it is shown: one that is too long without its middle, as names differ in their ends."""
    text, half = _printable(text), _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[: half - 1]}…{text[-half:]}"


def _printable(text: str) -> str:
    """Return a text without the characters that XML cannot hold."""
    return "".join(letter for letter in text if letter.isprintable())
