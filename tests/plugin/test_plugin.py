"""A third-party package works from a policy alone: nothing is registered in fxcompress."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fxcompress
from fxcompress.errors import PolicyError
from fxcompress.graph import text
from fxcompress.policies import dump, parse

POLICY = """
version: 1
steps:
  - kind: fxcompress_plugin:ClipInputs
    limit: 2.0
  - kind: quantize
    rules:
      - weight: {bits: [2, 4, 8], observer: {"fxcompress_plugin:MeanObserver": {width: 2.5}}}
search:
  sensitivity: {"fxcompress_plugin:fewer_bits_lose_more": {factor: 2.0}}
  budgets: {"fxcompress_plugin:weight_bits": {max: 24, each: 2}}
  solver: exact
"""


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))


def test_pass_observer_sensitivity_and_cost_model_work_together():
    plan = fxcompress.plan(net(), parse(POLICY, "p.yaml"))
    assert sorted(layer.decision for layer in plan.plan.layers) == ["W4", "W8"]  # 2 * (4 + 8) = 24 bits
    assert plan.plan.budgets["fxcompress_plugin:weight_bits"].predicted == 24
    small = fxcompress.transform(net(), plan)
    assert "Hardtanh(min_val=-2.0, max_val=2.0)" in text(small)
    assert parse(dump(plan), "again") == plan


def test_a_solver_of_ones_own():
    own = parse(POLICY.replace("solver: exact", "solver: fxcompress_plugin:cheapest"), "p.yaml")
    plan = fxcompress.plan(net(), own)
    assert [layer.decision for layer in plan.plan.layers] == ["W2", "W2"]
    assert plan.plan.solution.status == "feasible"


def test_what_does_not_exist_is_named():
    with pytest.raises(PolicyError, match=r"p.yaml:4: steps\[0\].*module 'fxcompress_plugin' has no 'ClipInput'"):
        parse(POLICY.replace("ClipInputs", "ClipInput"), "p.yaml")
    with pytest.raises(
        PolicyError, match=r"p.yaml:5: steps\[0\].limti: unknown key 'limti' \(did you mean 'limit'\?\)"
    ):
        parse(POLICY.replace("limit:", "limti:"), "p.yaml")
    with pytest.raises(PolicyError, match="cannot import module 'no_such_package'"):
        fxcompress.plan(
            net(), parse(POLICY.replace("fxcompress_plugin:MeanObserver", "no_such_package:Mean"), "p.yaml")
        )


def test_the_package_is_imported_when_a_policy_names_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "fxcompress_plugin")
    parse(POLICY, "p.yaml")
    assert "fxcompress_plugin" in sys.modules
