"""The drawing: an SVG file that is whole, in which each layer has its box and no two boxes overlap."""

import itertools
import re
from collections import Counter
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest
import torch
from torch import nn

import fxcompress
from fxcompress.errors import CaptureError
from fxcompress.graph import capture, layers
from fxcompress.graph.coverage import Coverage, Unseen, set_coverage
from fxcompress.graph.inputs import as_arguments
from fxcompress.graph.shapes import shapes
from fxcompress.reporting.drawing import draw

SVG = "{http://www.w3.org/2000/svg}"


class Block(nn.Module):
    """A residual block."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x, scale=None):
        x = x if scale is None else x * scale
        return (x + self.conv2(self.norm(self.conv1(x)).relu())).relu()


class Branches(nn.Module):
    """Several ways side by side, and a layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.ways = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.shared = nn.Linear(4, 4)

    def forward(self, x):
        parts = [self.shared(way(x)) if index < 2 else way(x) for index, way in enumerate(self.ways)]
        return torch.cat(parts, 1), parts[0]


class Asking(nn.Module):
    """Has code that only islands run around, with `<` and `&` in it."""

    def __init__(self):
        super().__init__()
        self.block, self.weight = Block(), nn.Parameter(torch.ones(4))

    def forward(self, x):
        x = self.block(x)
        if (x.sum() < 1e9) & (x.sum() > -1e9):
            x = x.movedim(1, -1) @ self.weight.diag()
        return x


IMAGE, VECTOR = torch.randn(2, 4, 6, 6), torch.randn(2, 4)
MODELS = [
    pytest.param(Block, IMAGE, id="block"),
    pytest.param(Branches, VECTOR, id="branches"),
    pytest.param(lambda: nn.Sequential(Block(), Block(), nn.Flatten(), nn.Linear(144, 3)), IMAGE, id="blocks"),
]


def drawn(gm, path, example=None) -> Element:
    draw(gm, path, None if example is None else shapes(gm, as_arguments(example)))
    return ElementTree.parse(path).getroot()


def boxes(picture: Element) -> list[tuple[Element, tuple[float, ...]]]:
    """Return each box with left, top, right and bottom in the whole picture."""
    found = []
    for part in (picture, *picture.findall(f"{SVG}g[@transform]")):
        left, top = map(float, re.findall(r"[\d.]+", part.get("transform", "0 0")))
        for group in part.findall(f"{SVG}g[{SVG}title]"):
            rect = group.find(f"{SVG}rect")
            x, y, width, height = (float(rect.get(name)) for name in ("x", "y", "width", "height"))
            found.append((group, (left + x, top + y, left + x + width, top + y + height)))
    return found


def texts(element: Element) -> str:
    return "\n".join(text.text or "" for text in element.iter(f"{SVG}text"))


def styles(picture: Element) -> Counter:
    return Counter(rect.get("class") for rect in picture.iter(f"{SVG}rect"))


@pytest.mark.parametrize("way", ["symbolic", "export", "islands"])
@pytest.mark.parametrize(("model", "example"), MODELS)
def test_each_call_of_a_layer_has_one_box_and_none_overlap(model, example, way, tmp_path):
    gm = capture(model().eval(), example, way=way)
    picture = drawn(gm, tmp_path / "graph.svg", example)
    found = boxes(picture)
    calls = {layer.name: len(layer.calls) for layer in layers(gm)}
    assert calls
    assert Counter(group.get("data-layer") for group, _ in found if group.get("data-layer")) == calls
    for (_, one), (_, other) in itertools.combinations(found, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    width, height = float(picture.get("width")), float(picture.get("height"))
    assert all(0 <= x < right <= width and 0 <= y < bottom <= height for _, (x, y, right, bottom) in found)


def test_boxes_tell_kind_shape_work_and_parameters(tmp_path):
    example = torch.zeros(2, 4, 6, 6)
    gm = capture(Block().eval(), example)
    found = {group.get("data-layer"): texts(group) for group, _ in boxes(drawn(gm, tmp_path / "graph.svg", example))}
    assert found["conv1"] == "conv1\nconv2d · 2x4x6x6 · 10,368 MACs\nweight 4x4x3x3, bias 4"
    assert found["add"] == "add\nadd · 2x4x6x6"
    unknown = {group.get("data-layer"): texts(group) for group, _ in boxes(drawn(gm, tmp_path / "graph.svg"))}
    assert unknown["conv1"] == "conv1\nconv2d\nweight 4x4x3x3, bias 4"


def test_guards_and_inputs_that_nothing_reads_are_not_drawn(tmp_path):
    gm = capture(Block().eval(), IMAGE, way="export")
    assert {"x", "scale"} == {node.target for node in gm.graph.find_nodes(op="placeholder")}
    said = texts(drawn(gm, tmp_path / "graph.svg", IMAGE))
    assert "scale" not in said
    assert "expect" not in said


def test_what_passes_insert_is_seen(tmp_path):
    policy = {
        "version": 1,
        "steps": [
            "fold_batch_norm",
            {"kind": "prune", "rules": [{"sparsity": 0.5}]},
            {"kind": "quantize", "rules": [{"weight": {"bits": 4}, "input": {"bits": 8}}]},
        ],
    }
    small = fxcompress.transform(Block().eval(), policy, data=[IMAGE])
    picture = drawn(small, tmp_path / "graph.svg", IMAGE)
    count = styles(picture)
    assert count["Quantizer"] == 2 + 2  # on two weights and on two inputs
    assert count["Mask"] == 2
    (conv1,) = [group for group, _ in boxes(picture) if group.get("data-layer") == "conv1"]
    assert texts(conv1).splitlines()[2:] == [
        "weight 4x4x3x3, bias 4",
        "weight: folded_weight",
        "weight: Mask(50% zeros)",
        "weight: Quantizer(int4, per channel)",
        "bias: folded_bias",
    ]


def test_islands_have_frames_and_what_is_not_seen_is_listed(tmp_path):
    picture = drawn(capture(Asking().eval(), IMAGE), tmp_path / "graph.svg", IMAGE)
    assert styles(picture)["region"] == 1
    said = texts(picture)
    assert "Asking, captured by islands" in said
    assert "\nblock\n" in said
    assert re.search(r"\nnot seen\nthe model itself · Asking · \d+\.\d%", said)


def test_a_module_that_is_not_looked_into_is_grey(tmp_path):
    gm = capture(nn.Sequential(nn.LSTM(4, 4), Taken()).eval(), torch.randn(3, 2, 4), way="symbolic")
    (lstm,) = [group for group, _ in boxes(drawn(gm, tmp_path / "graph.svg")) if texts(group).startswith("0\n")]
    assert texts(lstm) == "0\nLSTM\n160 parameters in 4 tensors"
    assert lstm.find(f"{SVG}rect").get("class") == "unseen"


class Taken(nn.Module):
    """Takes the first of its inputs."""

    def forward(self, pair):
        return pair[0]


def test_text_is_written_so_that_xml_can_hold_it(tmp_path):
    gm = capture(nn.Sequential(nn.Linear(4, 4)))
    line = 'if a < b & c > "\x1b[31m\x00":'
    unseen = Unseen("x", "X<Y>", 0, 1, "f.py:1", line, "no", "none")
    set_coverage(gm, Coverage("symbolic", None, None, 2, 1, (unseen,)))
    assert 'x · X<Y> · 50.0% · f.py:1: if a < b & c > "[31m"' in texts(drawn(gm, tmp_path / "graph.svg"))


def test_a_long_line_is_cut_and_whole_in_the_tooltip(tmp_path):
    name = "a" * 50 + "b" * 50
    model = nn.Sequential()
    model.add_module(name, nn.Linear(2, 2))
    gm = capture(model)
    (box,) = [group for group, _ in boxes(drawn(gm, tmp_path / "graph.svg")) if group.get("data-layer")]
    shown = texts(box).splitlines()[0]
    assert len(shown) == 90
    assert re.fullmatch("a+…b+", shown)
    assert name in box.find(f"{SVG}title").text


def test_the_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    gm, file = capture(nn.Sequential(nn.Linear(2, 2))), tmp_path / "new" / "graph.svg"
    drawn(gm, file)
    before = file.read_bytes()

    def fail(self, path, **kwargs):
        path.write_text("<svg")
        raise OSError("no space left")

    monkeypatch.setattr(ElementTree.ElementTree, "write", fail)
    with pytest.raises(OSError, match="no space left"):
        draw(gm, file)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_a_module_that_was_not_captured_is_refused(tmp_path):
    with pytest.raises(CaptureError, match=r"is not the result of fxcompress\.capture"):
        draw(torch.fx.symbolic_trace(nn.Sequential()), tmp_path / "graph.svg")
    assert not list(tmp_path.iterdir())
