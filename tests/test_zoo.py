"""The zoo of benchmarks: how models are built, run, compared, limited and judged."""

import os
import signal
import time

import pytest
import torch
from torch import Tensor, nn

from benchmarks.zoo.configured import entries
from benchmarks.zoo.entries import Case, Entry
from benchmarks.zoo.forward import difference, run
from benchmarks.zoo.judge import _compare, judge
from benchmarks.zoo.liven import liven
from benchmarks.zoo.processes import Limits, each
from benchmarks.zoo.rows import Row
from benchmarks.zoo.torchvision_operators import _nms


@pytest.mark.parametrize(
    ("expected", "found", "apart"),
    [
        (torch.tensor([1.0, -4.0]), torch.tensor([1.0, -4.0]), 0.0),
        (torch.tensor([1.0, -4.0]), torch.tensor([1.5, -4.0]), 0.125),
        ((torch.tensor([2.0]), {"a": torch.tensor([8.0])}), (torch.tensor([1.0]), {"a": torch.tensor([8.0])}), 0.5),
        (torch.tensor([float("-inf"), 2.0]), torch.tensor([float("-inf"), 1.0]), 0.5),
        (torch.tensor([float("nan"), 2.0]), torch.tensor([float("nan"), 2.0]), 0.0),
        (torch.tensor([2.0]), torch.tensor([float("nan")]), float("inf")),
        (torch.tensor([float("inf"), 1.0]), torch.tensor([float("-inf"), 1.0]), float("inf")),
        (torch.tensor([3, 4]), torch.tensor([3, 2]), 0.5),
        (torch.empty(0, 4), torch.empty(0, 4), 0.0),
        ([None, 3], [None, 3], 0.0),
    ],
)
def test_difference_is_in_units_of_the_largest_value(expected, found, apart):
    assert difference(expected, found) == apart


@pytest.mark.parametrize(
    ("expected", "found", "text"),
    [
        (torch.ones(2), torch.ones(3), r"returns torch.float32\[3\], not torch.float32\[2\]"),
        (torch.ones(2), torch.ones(2).double(), r"returns torch.float64\[2\], not"),
        ([torch.ones(2)], [torch.ones(2), torch.ones(2)], "returns"),
        ([torch.ones(2)], [None], "returns None, not tensor"),
        (["a"], ["b"], "returns 'b', not 'a'"),
    ],
)
def test_other_outputs_are_told(expected, found, text):
    with pytest.raises(ValueError, match=text):
        difference(expected, found)


def test_livened_weights_let_every_parameter_reach_the_output():
    def build() -> nn.Module:
        torch.manual_seed(0)
        last = nn.Linear(8, 3)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        norms = [layer for _ in range(3) for layer in (nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())]
        return nn.Sequential(*norms, last).eval()

    x = torch.randn(6, 8)
    assert not run(build(), x).any()
    livened = build()
    liven(livened, x)
    expected = run(livened, x)
    for name, parameter in livened.named_parameters():
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter.mul_(1.5)
        assert difference(expected, run(livened, x)) > 1e-3, name
        with torch.no_grad():
            parameter.copy_(before)


def _reference_nms(boxes: Tensor, scores: Tensor, threshold: float) -> list[int]:
    def overlap(a: list[float], b: list[float]) -> float:
        width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
        height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
        areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
        return width * height / (sum(areas) - width * height)

    listed, kept = boxes.tolist(), []
    for index in sorted(range(len(listed)), key=lambda one: -scores[one].item()):
        if all(overlap(listed[index], listed[other]) <= threshold for other in kept):
            kept.append(index)
    return kept


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_non_maximum_suppression_matches_its_definition(threshold):
    torch.manual_seed(0)
    corners = torch.rand(60, 2, dtype=torch.float64) * 10
    boxes = torch.cat([corners, corners + torch.rand(60, 2, dtype=torch.float64) * 5 + 0.1], 1)
    scores = torch.rand(60, dtype=torch.float64)
    assert _nms(boxes, scores, threshold).tolist() == _reference_nms(boxes, scores, threshold)


def _work(task: str):
    yield {"started": True}
    match task:
        case "slow":
            time.sleep(60)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "failing":
            raise RuntimeError
        case "large":
            try:
                torch.ones(10**10)
            except RuntimeError as error:
                yield {"refused": str(error)}
    yield {"ended": True}


def test_a_process_that_ends_early_is_told_and_stops_no_other():
    start = time.monotonic()
    tasks = ["good", "slow", "killed", "failing", "large"]
    found = {one.task: one for one in each(tasks, _work, Limits(seconds=3, gigabytes=20), jobs=2)}
    assert time.monotonic() - start < 30
    assert found.keys() == set(tasks)
    assert {task: one.ended for task, one in found.items()} == {
        "good": "",
        "slow": "time limit of 3 s",
        "killed": "killed by SIGKILL",
        "failing": "exit status 1",
        "large": "",
    }
    assert found["good"].sent == {"started": True, "ended": True}
    assert found["slow"].sent == {"started": True}
    assert "allocate" in found["large"].sent["refused"]


class _Refusing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if x.sum() > 0 else -self.fc(x)


def _judged(model: nn.Module) -> dict[str, object]:
    x = torch.rand(2, 4)
    merged: dict[str, object] = {}
    for columns in judge(
        Entry("any", "any", "any", lambda: Case(model.eval(), x, x + 1, torch.rand(3, 4))), plain=True
    ):
        merged |= columns
    return merged


def test_a_model_is_judged_beside_plain_tracers():
    found = _judged(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    row = Row(*("any", "any", "any", "any"), **found)
    assert row.captured
    assert row.larger == "equal"
    assert (row.fx, row.export, row.way) == ("equal", "equal", "symbolic")
    assert (row.parameters, row.macs) == (4 * 8 + 8 + 8 * 2 + 2, 2 * (4 * 8 + 8 * 2))
    assert (row.macs_share, row.parameters_share, row.layers, row.unseen) == (1.0, 1.0, 2, 0)
    assert row.difference == 0.0


def test_a_graph_that_holds_the_outputs_of_one_call_is_told():
    class Baked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones(2)

    x = torch.ones(2)
    assert _compare(Baked(), [(x, x)]) == ("equal", 0.0)
    assert _compare(Baked(), [(x, x), (x + 1, x + 1)]) == ("differs by 5.0e-01", 0.5)
    assert _compare(Baked(), [(x, torch.ones(3))])[0].startswith("ValueError: returns torch.float32[2], not")


def test_a_model_that_plain_tracers_refuse_has_their_reasons():
    found = _judged(nn.Sequential(_Refusing()))
    assert "symbolically traced variables cannot be used as inputs to control flow" in found["fx"]
    assert "data-dependent" in found["export"]


def test_a_model_that_does_not_run_has_the_reason():
    found = _judged(nn.Linear(5, 2))
    assert found["capture"].startswith("the model itself does not run: RuntimeError: mat1 and mat2")
    assert "macs" not in found


class _Echo(nn.Module):
    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        return inputs


def test_inputs_of_a_configured_model_follow_the_batch_size():
    every = list(entries("transformers", lambda name, settings: _Echo()))
    assert len({entry.name for entry in every}) == len(every)
    found = next(entry for entry in every if entry.name == "Owlv2ForObjectDetection").build()
    for batch, inputs in ((2, found.example_inputs), (2, found.new_inputs), (3, found.larger_inputs)):
        assert {name: list(value.shape) for name, value in inputs.items()} == {
            "pixel_values": [batch, 3, 64, 64],
            "input_ids": [2 * batch, 16],
            "attention_mask": [2 * batch, 16],
        }
        assert inputs["attention_mask"][-1].tolist() == [1] * 12 + [0] * 4
        assert inputs["attention_mask"][:-1].all()
