"""What a capture saw: rows are those of the model, sums add up, and what is not seen is told with its cause."""

import importlib
import io
import json
import sys

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fxcompress.errors import CaptureError
from fxcompress.graph import capture
from fxcompress.graph.inputs import as_arguments
from fxcompress.graph.shapes import shapes
from fxcompress.reporting.captured import Captured, captured


class Gate(nn.Module):
    """Multiplies by its weight, or not, as the values are."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))

    def forward(self, x):
        if x.amax() > 0:
            x = x @ self.weight
        return x


class Attention(nn.Module):
    """Has work in operators without a weight, a norm, and a linear layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.twice, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)

    def forward(self, x):
        x = self.twice(self.twice(x))
        return self.norm(torch.softmax(x @ x.mT, -1) @ x)


def tied() -> nn.Module:
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6))
    model[1].weight = model[0].weight
    return model


def convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5))


def gated() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), Gate(), nn.Linear(4, 2))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.used(x)


MODELS = [
    pytest.param(convolutions, torch.zeros(2, 3, 8, 8), id="convolutions"),
    pytest.param(Attention, torch.ones(2, 3, 4), id="attention"),
    pytest.param(tied, torch.tensor([[1, 2, 5]]), id="tied"),
    pytest.param(gated, torch.ones(3, 4), id="gated"),
    pytest.param(Unused, torch.ones(3, 4), id="unused"),
]


def seen(model: nn.Module, example, way: str = "auto") -> Captured:
    gm = capture(model.eval(), example, way=way)
    return captured(gm, None if example is None else shapes(gm, as_arguments(example)))


def printed(found: Captured, width: int = 200) -> str:
    stream = io.StringIO()
    found.print(Console(file=stream, width=width))
    return " ".join(stream.getvalue().split())


def test_rows_have_shapes_parameters_and_work():
    first, second = seen(convolutions(), torch.zeros(2, 3, 8, 8)).rows
    assert (first.name, first.kind, first.calls, first.tied_to) == ("0", "conv2d", 1, None)
    assert (first.weight_shape, first.input_shape, first.output_shape) == ((8, 3, 3, 3), (2, 3, 8, 8), (2, 8, 3, 3))
    assert (first.parameters, first.macs) == (8 * 3 * 9 + 8, 2 * 8 * 9 * 3 * 9)
    assert (second.parameters, second.macs) == (72 * 5 + 5, 2 * 72 * 5)
    assert first.share == pytest.approx(first.macs / (first.macs + second.macs))


def test_a_layer_counts_each_run_and_its_parameters_once():
    (twice,) = seen(Attention(), torch.ones(2, 3, 4)).rows
    assert (twice.calls, twice.macs, twice.parameters) == (2, 2 * (6 * 16), 20)
    (once,) = seen(Attention(), torch.ones(2, 3, 4), way="islands").rows
    assert (once.calls, once.macs, once.parameters) == (2, 2 * (6 * 16), 20)


def test_a_tied_weight_counts_at_its_first_layer():
    embedding, linear = seen(tied(), torch.tensor([[1, 2, 5]])).rows
    assert (embedding.tied_to, embedding.parameters) == (None, 24)
    assert (linear.tied_to, linear.parameters) == ("0.weight", 6)
    assert "tied 1 has the weight 0.weight" in printed(seen(tied(), torch.tensor([[1, 2, 5]])))


@pytest.mark.parametrize("way", ["auto", "islands"])
@pytest.mark.parametrize(("model", "example"), MODELS)
def test_the_sums_add_up_to_the_model(model, example, way):
    original = model().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        original(example)
    data = json.loads(seen(original, example, way).to_json())
    totals = data["totals"]
    for unit in ("parameters", "macs"):
        assert sum(totals[part][unit] for part in ("layers", "other", "unseen")) == totals["all"][unit]
        assert sum(layer[unit] for layer in data["layers"]) == totals["layers"][unit]
        assert sum(one[unit] for one in data["unseen"]) == totals["unseen"][unit]
        assert min(totals[part][unit] for part in totals) >= 0
    assert totals["all"]["macs"] == counter.get_total_flops() // 2
    assert totals["all"]["parameters"] == sum(parameter.numel() for parameter in original.parameters())
    assert data["share"] == pytest.approx(1 - totals["unseen"]["macs"] / totals["all"]["macs"])


def test_other_operators_hold_what_is_no_layers():
    parts = seen(Attention(), torch.ones(2, 3, 4)).parts()
    assert (parts["other"].parameters, parts["other"].macs) == (8, 2 * (2 * 3 * 3 * 4))  # the norm; two products
    parts = seen(convolutions(), torch.zeros(2, 3, 8, 8)).parts()
    assert (parts["other"].parameters, parts["other"].macs) == (16, 0)  # the batch norm


def test_what_is_not_seen_has_place_reason_and_advice():
    found = seen(gated(), torch.ones(3, 4))
    said = printed(found)
    assert found.regions == ("0", "3")
    assert "way islands: 2 regions, between which the model's own Python runs" in said
    assert "tried symbolic: Sequential cannot be traced" in said
    assert "tried export: Sequential cannot be exported" in said
    work = 3 * 16 + 3 * 16 + 3 * 8
    assert f"not seen: 2 (Gate), {3 * 16 / work:.1%} of the multiply-accumulates, 16 parameters" in said
    line = Gate.forward.__code__.co_firstlineno + 1
    assert (
        f"test_captured.py:{line}: if x.amax() > 0 why Gate cannot be traced: symbolically traced variables" in said
    )
    assert "change choose with torch.where instead of `if` on a tensor's value" in said


def test_places_are_told_from_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\n"
        "class Mine(nn.Linear):\n"
        "    def forward(self, x):\n"
        "        return x if x.sum() > 1e9 else x @ self.weight\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    model = nn.Sequential(nn.Linear(4, 4), importlib.import_module("mine").Mine(4, 4))
    said = printed(seen(model, torch.ones(1, 4)))
    assert "where mine.py:5: return x if x.sum() > 1e9 else x @ self.weight" in said
    assert str(tmp_path) not in said


def test_without_inputs_there_are_parameters_only():
    found = seen(convolutions(), None)
    (first, _), parts = found.rows, found.parts()
    assert (first.weight_shape, first.parameters, first.calls) == ((8, 3, 3, 3), 224, 1)
    assert first.input_shape is first.output_shape is first.macs is first.share is None
    assert {name: part.macs for name, part in parts.items()} == dict.fromkeys(("layers", "other", "unseen", "all"))
    assert parts["all"].parameters == 224 + 16 + 365
    assert "seen 100.0% of the parameters" in printed(found)
    assert "multiply-accumulates" not in printed(found)


def test_a_narrow_table_has_the_output_shapes_and_a_wide_one_all():
    found = seen(convolutions(), torch.zeros(2, 3, 8, 8))
    narrow, wide = printed(found, 80), printed(found, 120)
    assert "2x8x3x3" in narrow
    assert "2x8x3x3" in wide
    assert "2x3x8x8" not in narrow
    assert "2x3x8x8" in wide


def test_a_layer_that_the_inputs_do_not_reach_has_no_work():
    class Either(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.a(x) if x.sum() > 0 else F.relu(self.b(x))

    rows = {row.name: row for row in seen(Either(), torch.ones(1, 4)).rows}
    assert rows["a"].macs == 16
    assert "b" not in rows or (rows["b"].calls, rows["b"].macs, rows["b"].output_shape) == (0, 0, None)


def test_shares_near_all_and_nothing_do_not_read_as_such():
    class Little(nn.Module):
        def __init__(self):
            super().__init__()
            self.big, self.gate = nn.Linear(4, 8000, bias=False), Gate()

        def forward(self, x):
            return self.big(x), self.gate(x)

    said = printed(seen(Little(), torch.ones(1, 4)))
    assert "seen >99.9% of the multiply-accumulates" in said
    assert "not seen: gate (Gate), <0.1% of" in said


def test_a_module_that_was_not_captured_is_refused():
    with pytest.raises(CaptureError, match=r"Sequential is not the result of fxcompress\.capture"):
        captured(nn.Sequential())
