"""The command line: what each command prints and writes, and its exit code."""

import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fxcompress import cli
from fxcompress.cli import app
from fxcompress.policies import Plan, read

MODULE = "cli_project"
SOURCE = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))

def batches():
    torch.manual_seed(1)
    return [(torch.randn(8, 1, 8, 8), torch.randint(0, 4, (8,))) for _ in range(2)]

example = torch.zeros(1, 1, 8, 8)

class Gate(nn.Linear):
    def forward(self, x):
        if x.amax() > 0:
            return x @ self.weight
        return x

class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.gate, self.last = nn.Linear(4, 4), Gate(4, 4, bias=False), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.gate(self.first(x).exp()))

def gated():
    torch.manual_seed(0)
    return Gated()

class Trained(nn.Linear):
    def forward(self, x):
        return x * 2 if self.training else x @ self.weight

vector = torch.ones(1, 4)
"""
IF = SOURCE.splitlines().index("        if x.amax() > 0:") + 1
POLICY = """
version: 1
steps:
  - kind: quantize
    rules:
      - weight: {bits: [4, 8]}
        input: {bits: 8}
search:
  budgets: {size: 20%}
"""
MODEL = ["--model", f"{MODULE}:net"]
GATED = ["--model", f"{MODULE}:gated", "--inputs", f"{MODULE}:vector"]
DATA = ["--data", f"{MODULE}:batches", "--loss", "torch.nn.functional:cross_entropy"]


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    (tmp_path / f"{MODULE}.py").write_text(SOURCE)
    (tmp_path / "mixed.yaml").write_text(POLICY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    return tmp_path


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def test_check_tells_what_each_rule_matches():
    assert "valid" in run("check", "mixed.yaml")
    assert "mixed.yaml:6: 2 layers: 0, 3" in run("check", "mixed.yaml", *MODEL)


def test_the_main_job_from_policy_to_onnx(project):
    assert "wrote mixed.plan.yaml" in run("plan", "mixed.yaml", *MODEL, *DATA, "-o", "mixed.plan.yaml")
    assert isinstance(read(project / "mixed.plan.yaml"), Plan)
    run("transform", "mixed.plan.yaml", *MODEL, "-o", "small")
    assert "size" in run("report", "small")
    assert len(json.loads(run("report", "small", "--json"))["layers"]) == 2
    said = run("lower", "small", *MODEL, "--inputs", f"{MODULE}:example", "-o", "small.onnx")
    assert "largest difference to PyTorch" in said
    assert (project / "small.onnx").stat().st_size > 0


def test_capture_shows_the_layers_the_way_and_what_is_not_seen():
    said = run("capture", f"{MODULE}:gated", "--inputs", f"{MODULE}:vector")
    assert "The layers of Gated" in said
    assert "│ first │ linear │ 1x4 │ 1 │ 20 │ 16 │ 40.0% │" in said
    assert "│ last │ linear │ 1x2 │ 1 │ 10 │ 8 │ 20.0% │" in said
    assert "│ not seen │ │ │ │ 16 │ 16 │ 40.0% │" in said
    assert "way islands: 2 regions" in said
    assert f"tried export: Gated cannot be exported in module 'gate' at {MODULE}.py:{IF}" in said
    assert "not seen: gate (Gate), 40.0% of the multiply-accumulates, 16 parameters" in said
    assert f"where {MODULE}.py:{IF}: if x.amax() > 0 why Gate cannot be traced" in said
    assert "change choose with torch.where" in said


def test_the_page_on_capture_shows_what_the_command_prints(project, monkeypatch):
    page = (Path(__file__).parent.parent / "docs" / "capture.md").read_text()
    source = re.search(r"```python\n# mypackage/models\.py\n(.*?)```", page, re.DOTALL)[1]
    command, printed = re.search(r"```\n\$ fxcompress (capture .*?)\n(.*?)```", page, re.DOTALL).groups()
    (project / "mypackage").mkdir()
    (project / "mypackage" / "models.py").write_text(source)
    for name in ("mypackage", "mypackage.models"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(cli, "_out", Console(width=110))
    result = CliRunner().invoke(app, command.split())
    assert [line.rstrip() for line in result.stdout.splitlines()] == printed.splitlines()
    assert (project / "net.svg").exists()


def test_capture_without_inputs_runs_nothing():
    said = run("capture", f"{MODULE}:net")
    assert "│ 0 │ conv2d │ - │ 1 │ 80 │ - │ - │" in said
    assert "way symbolic: one graph of the whole model" in said
    assert "pass example_inputs" in run("capture", f"{MODULE}:net", "--way", "export", code=1)


def test_capture_takes_the_first_sample_of_data():
    assert "1x8x6x6" in run("capture", f"{MODULE}:net", "--data", f"{MODULE}:batches")


def test_capture_prints_json_that_adds_up_and_draws(project):
    arguments = [f"{MODULE}:gated", "-i", f"{MODULE}:vector", "--json", "--graph", "new/graph.svg"]
    result = CliRunner().invoke(app, ["capture", *arguments])
    data = json.loads(result.stdout)
    totals = data["totals"]
    assert totals["all"] == {"parameters": 46, "macs": 40}
    for unit in ("parameters", "macs"):
        assert sum(totals[part][unit] for part in ("layers", "other", "unseen")) == totals["all"][unit]
    assert (data["way"], data["regions"], data["share"]) == ("islands", ["first", "last"], 0.6)
    assert result.stderr == "wrote new/graph.svg\n"
    assert ElementTree.parse(project / "new" / "graph.svg").getroot().tag.endswith("svg")


def test_capture_says_no_in_one_line():
    said = run("capture", f"{MODULE}:gated", code=1)
    assert said.startswith(f"error: Gated cannot be traced in module 'gate' at {sys.path[0]}/{MODULE}.py:{IF}")
    said = run("capture", f"{MODULE}:gated", "-i", f"{MODULE}:vector", "--way", "export", code=1)
    assert said.startswith("error: Gated cannot be exported")
    assert "is a Tensor, not a torch.nn.Module" in run("capture", f"{MODULE}:vector", code=2)
    assert "'exprt' is not one of 'auto'" in run("capture", f"{MODULE}:net", "--way", "exprt", code=2)
    assert "is a directory" in run("capture", f"{MODULE}:net", "--graph", ".", code=2)
    assert "Missing argument" in run("capture", code=2)


@pytest.mark.filterwarnings("default::UserWarning")
def test_a_warning_is_one_line(project):
    (project / f"{MODULE}.py").write_text(f"{SOURCE}\ntrained = nn.Sequential(Trained(4, 4))\n")
    said = run("capture", f"{MODULE}:trained")
    assert said.startswith("warning: Sequential asks for its mode at")


def test_a_model_that_cannot_be_traced_goes_from_check_to_plan(project):
    assert "cannot be traced" in run("check", "w8", "-m", f"{MODULE}:gated", code=1)
    assert "2 layers: first, last" in run("check", "w8", *GATED)
    run("plan", "w8", *GATED, "-o", "gated.yaml")
    assert read(project / "gated.yaml").capture == "islands"
    run("transform", "gated.yaml", *GATED, "-o", "small")
    assert "capturing Gated by islands runs it: pass example_inputs" in run(
        "transform", "gated.yaml", "-m", f"{MODULE}:gated", "-o", "x", code=1
    )
    assert "cannot be exported" in run("transform", "w8", *GATED, "--capture", "export", "-o", "x", code=1)
    run("plan", "w8", *MODEL, "--inputs", f"{MODULE}:example", "--capture", "export", "-o", "net.yaml")
    assert read(project / "net.yaml").capture == "export"
    (project / "own.yaml").write_text(f"capture: export\n{POLICY}")
    assert "pass example_inputs" in run("check", "own.yaml", *MODEL, code=1)
    assert "2 layers: 0, 3" in run("check", "own.yaml", *MODEL, "--inputs", f"{MODULE}:example")


def test_lower_captures_as_the_plan_says(project):
    inputs = ["--inputs", f"{MODULE}:example"]
    run("transform", "w8", *MODEL, *inputs, "--capture", "export", "-o", "small")
    assert "largest difference to PyTorch" in run("lower", "small", *MODEL, *inputs, "-o", "small.onnx")
    assert "lower runs the model once: pass --inputs" in run("lower", "small", *MODEL, "-o", "small.onnx", code=2)


def test_a_budget_on_the_command_line_replaces_the_policys():
    run("plan", "mixed.yaml", *MODEL, *DATA, "--budget", "size=26%", "-o", "loose.yaml")
    assert read("loose.yaml").plan.budgets["size"].asked.text == "26%"
    assert "write name=amount" in run("plan", "mixed.yaml", *MODEL, *DATA, "-b", "size", "-o", "x.yaml", code=2)


def test_the_model_or_the_budget_says_no():
    said = run("plan", "mixed.yaml", *MODEL, *DATA, "-b", "size=1%", "-o", "x.yaml", code=1)
    assert "no choice of options meets the budgets: size: at most 1% (49 B) asked, at least" in said
    assert "hessian_trace needs loss" in run(
        "plan", "mixed.yaml", *MODEL, "-d", f"{MODULE}:batches", "-o", "x", code=1
    )


def test_wrong_usage_and_bad_policies():
    assert "no preset is named 'w8a9' (did you mean 'w8a8'?)" in run("check", "w8a9", code=2)
    assert "is not of the form package.module:name" in run("check", "w8", "-m", "net", code=2)
    assert "module 'cli_project' has no 'nett' (did you mean 'net'?)" in run(
        "check", "w8", "-m", f"{MODULE}:nett", code=2
    )
    assert "is a Tensor, not a torch.nn.Module" in run("check", "w8", "-m", f"{MODULE}:example", code=2)
    assert "Missing argument" in run("check", code=2)
    run("nonsense", code=2)


def test_builtin_only_refuses_names_that_run_code(project):
    (project / "own.yaml").write_text("version: 1\nsteps: [{kind: 'mine:Step'}]\n")
    assert "'mine:Step' runs code; --builtin-only refuses it" in run("check", "own.yaml", "--builtin-only", code=2)


def test_schema_is_json_and_help_is_there():
    assert "properties" in json.loads(CliRunner().invoke(app, ["schema"]).output)
    for command in ("capture", "check", "plan", "transform", "lower", "report", "schema", "demo"):
        assert len(run(command, "--help")) > 200
    assert "Exit codes" in run("--help")


def test_folders_are_made_and_missing_ones_named(project):
    run("plan", "mixed.yaml", *MODEL, *DATA, "-o", "new/folder/mixed.plan.yaml")
    assert (project / "new" / "folder" / "mixed.plan.yaml").exists()
    assert "nothing-here: no such plan file or folder of a saved model" in run("report", "nothing-here", code=1)
    assert "unknown budget 'sise' (did you mean 'size'?)" in run(
        "plan", "mixed.yaml", *MODEL, *DATA, "-b", "sise=4%", "-o", "x.yaml", code=2
    )
