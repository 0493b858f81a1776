"""The report: rows, JSON and table say what the plan says."""

import io
import json

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

import fxcompress
from fxcompress.errors import CompressError

POLICY = {
    "version": 1,
    "steps": [{"kind": "quantize", "rules": [{"weight": {"bits": [4, 8]}}]}],
    "search": {"budgets": {"size": "37%", "bops": "20%"}},
}


@pytest.fixture(scope="module")
def plan() -> fxcompress.Plan:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    batch = (torch.randn(32, 8), torch.randint(0, 4, (32,)))
    return fxcompress.plan(net, POLICY, data=[batch], loss=F.cross_entropy)


def test_rows_tell_each_layer_with_its_shares(plan):
    first, second = fxcompress.report(plan).rows()
    assert (first["name"], first["kind"], first["parameters"]) == ("0", "linear", 128)
    assert first["share_of_size"] == pytest.approx((128 + 16) / (128 + 16 + 64 + 4))
    assert second["share_of_work"] == pytest.approx(64 / (128 + 64))
    assert first["decision"] == "W4"
    assert first["expected_loss"] > 0 < first["standard_error"]
    assert "int8 would lower the loss" in first["why"]


def test_json_holds_totals_before_and_after(plan):
    data = json.loads(fxcompress.report(plan).to_json())
    assert data["totals"]["float_size"] == 4 * (128 + 16 + 64 + 4)
    assert data["totals"]["size"] <= 0.37 * data["totals"]["float_size"]
    assert data["totals"]["float_bops"] == (128 + 64) * 32 * 32
    assert data["budgets"]["size"]["asked"] == "37%"
    assert data["solution"]["status"] == "optimal"
    assert data["matched"] == {"quantize rule 1": ["0", "2"]}


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_says_why_at_any_width(plan, width):
    stream = io.StringIO()
    fxcompress.report(plan).print(Console(file=stream, width=width))
    printed = " ".join(stream.getvalue().split())
    for word in ("layer", "share of size", "W4", "would lower the loss", "budget size 37%", "gap 0.00%"):
        assert word in printed or (width == 80 and word.split()[0] in printed)  # a narrow table wraps words


def test_a_report_comes_from_model_plan_file_or_folder(plan, tmp_path):
    plan.save(tmp_path / "x.plan.yaml")
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    small = fxcompress.transform(net, plan)
    fxcompress.save(small, tmp_path / "small")
    expected = fxcompress.report(plan).to_json()
    for source in (small, tmp_path / "x.plan.yaml", tmp_path / "small"):
        assert fxcompress.report(source).to_json() == expected


def test_a_policy_without_decisions_is_refused(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text("version: 1\nsteps: [fold_batch_norm]\n")
    with pytest.raises(CompressError, match="is a policy without decisions; fxcompress plan writes a plan"):
        fxcompress.report(file)


def test_it_names_the_target_and_what_tunes(plan):
    stream = io.StringIO()
    tuned = plan.replaced(target="onnxruntime", tune=("bias_correction", {"ada_round": {"iterations": 9}}))
    fxcompress.report(tuned).print(Console(file=stream, width=200))
    assert "target    onnxruntime\ntuned by  bias_correction, ada_round\n" in stream.getvalue()
    data = json.loads(fxcompress.report(tuned).to_json())
    assert (data["target"], data["tune"]) == ("onnxruntime", ["bias_correction", {"ada_round": {"iterations": 9}}])
