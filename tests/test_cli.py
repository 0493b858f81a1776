"""The command line: what each command prints and writes, and its exit code."""

import json
import sys

import pytest
from typer.testing import CliRunner

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
"""
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
    for command in ("check", "plan", "transform", "lower", "report", "schema", "demo"):
        assert len(run(command, "--help")) > 200
    assert "Exit codes" in run("--help")


def test_folders_are_made_and_missing_ones_named(project):
    run("plan", "mixed.yaml", *MODEL, *DATA, "-o", "new/folder/mixed.plan.yaml")
    assert (project / "new" / "folder" / "mixed.plan.yaml").exists()
    assert "nothing-here: no such plan file or folder of a saved model" in run("report", "nothing-here", code=1)
    assert "unknown budget 'sise' (did you mean 'size'?)" in run(
        "plan", "mixed.yaml", *MODEL, *DATA, "-b", "sise=4%", "-o", "x.yaml", code=2
    )
