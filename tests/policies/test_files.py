"""Reading and writing policy files."""

import json
import os

import pytest

from fxcompress.errors import PolicyError
from fxcompress.policies import FoldBatchNorm, Plan, Policy, dump, parse, presets, read, write_text

TEXT = """\
# what we ship
version: 1
steps:
  - fold_batch_norm
  - kind: quantize
    rules:
      - weight: {bits: [2, 4, 8], per: channel}
        input: {bits: 8, observer: {percentile: {q: 99.9}}}
      - select: {names: [conv1, linear]}
        weight: {bits: 8}
search:
  budgets: {size: 25%, latency: {table: tables/m7.json, max: 6 ms}}
"""


def test_yaml_and_json_say_the_same():
    data = {
        "version": 1,
        "steps": [
            "fold_batch_norm",
            {
                "kind": "quantize",
                "rules": [
                    {
                        "weight": {"bits": [2, 4, 8], "per": "channel"},
                        "input": {"bits": 8, "observer": {"percentile": {"q": 99.9}}},
                    },
                    {"select": {"names": ["conv1", "linear"]}, "weight": {"bits": 8}},
                ],
            },
        ],
        "search": {"budgets": {"size": "25%", "latency": {"table": "tables/m7.json", "max": "6 ms"}}},
    }
    policy = parse(TEXT, "p.yaml")
    assert policy == read(data) == parse(json.dumps(data), "p.json") == parse(json.dumps(data, indent="\t"), "p.json")
    assert policy == read(policy)


def test_values_know_their_line():
    for name, text in (("p.yaml", TEXT), ("p.json", json.dumps(parse(TEXT, "p").plain(), indent=1))):
        policy = parse(text, name)
        lines = text.splitlines()
        rule = policy.steps[1].rules[1]
        assert rule.at.startswith(f"{name}:")
        line = int(rule.at.rpartition(":")[2])
        assert "select" in lines[line - 1] + lines[line]  # in JSON a brace stands on a line of its own
        assert rule.replaced().at == rule.at
    assert read(policy.plain()).steps[0].at == ""


def test_tables_are_meant_from_the_folder_of_the_file(tmp_path):
    (tmp_path / "p.yaml").write_text(TEXT)
    assert read(tmp_path / "p.yaml").search.budgets["latency"].args == {"table": str(tmp_path / "tables" / "m7.json")}
    assert parse(TEXT, "p.yaml").search.budgets["latency"].args == {"table": "tables/m7.json"}


def test_json_keeps_its_own_text(tmp_path):
    (tmp_path / "p.json").write_text(
        r'{"version": 1, "steps": [{"kind": "resolve", "choose": {"a": "\ud83d\ude00"}}]}'
    )
    assert read(tmp_path / "p.json").steps[0].choose == {"a": "\N{GRINNING FACE}"}


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(PolicyError, match=r"nowhere.yaml: cannot be read: No such file or directory$"):
        read(tmp_path / "nowhere.yaml")
    (tmp_path / "p.yaml").write_bytes(b"version: \xff")
    with pytest.raises(PolicyError, match=r"p.yaml: is not a text in UTF-8$"):
        read(tmp_path / "p.yaml")


def test_a_byte_order_mark_is_no_key(tmp_path):
    for name in ("p.yaml", "p.json"):
        (tmp_path / name).write_text('{"version": 1, "steps": ["fold_batch_norm"]}', "utf-8-sig")
        assert read(tmp_path / name).steps == (FoldBatchNorm(),)


def test_presets():
    assert presets() == ["mixed", "w4", "w4a8", "w8", "w8a8"]
    for name in presets():
        assert read(name, builtin_only=True).steps[0] == FoldBatchNorm()
        assert read(name).steps[0].at == f"preset {name}:{4 if name in ('w8', 'w4') else 5}"  # they have no target
    with pytest.raises(
        PolicyError, match=r"^no preset is named 'w8a9' \(did you mean 'w8a8'\?\); presets: mixed, w4, "
    ):
        read("w8a9")


POLICIES = [
    *(read(name) for name in presets()),
    parse(TEXT, "p.yaml"),
    Policy(version=1, steps=({"kind": "resolve", "choose": {"a b": "yes", "c: d": "50% sparse", "on": "1"}},)),
    read({"version": 1, "steps": [{"kind": "supernet", "rules": [{"kernel_size": [3, 5]}]}]}),
    read(
        {
            "version": 1,
            "steps": [
                {
                    "kind": "prune",
                    "rules": [{"sparsity": [0.0, 1e-5]}, {"select": {"names": ["a.[[]0]"]}, "sparsity": 0}],
                },
                {"kind": "quantize", "rules": [{"weight": None}], "ranges": {"x": [-1e-30, 12345678.9]}},
            ],
            "search": {
                "budgets": {"bops": 1e9, "my.cost:watts": {"max": "3%", "each": [1, "a"]}},
                "sensitivity": {"my.rise:of_loss": {"deep": {"er": None}}},
                "solver": {"exact": {"time_limit": 1}},
            },
        }
    ),
]


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_written_reads_back_to_the_same_bytes(policy, tmp_path):
    text = dump(policy)
    again = parse(text, "again.yaml")
    assert again == policy
    assert type(again) is type(policy)
    assert dump(again) == text
    assert parse(json.dumps(policy.plain()), "again.json") == policy
    policy.save(tmp_path / "p.yaml")
    assert (tmp_path / "p.yaml").read_text() == text


def test_layout():
    expected = """\
version: 1
steps:
- kind: fold_batch_norm
- kind: quantize
  rules:
  - weight: {bits: [2, 4, 8], per: channel}
    input:
      bits: 8
      observer:
        percentile: {q: 99.9}
  - select: {names: [conv1, linear]}
    weight: {bits: 8}
search:
  budgets:
    size: 25%
    latency:
      max: 6 ms
      table: tables/m7.json
"""
    assert dump(parse(TEXT, "p.yaml")) == expected


RECORD = {
    "fxcompress": "0.1.0",
    "totals": {"parameters": 9, "sparsity": 0.5, "size": 12, "float_size": 36, "bops": 1, "float_bops": 2},
    "layers": [
        {
            "name": "conv1",
            "kind": "conv2d",
            "parameters": 9,
            "decision": "W4, 50% sparse",
            "sparsity": 0.5,
            "size": 12,
            "float_size": 36,
            "expected_loss": 1e-07,
            "standard_error": 0.0,
            "why": "the cheapest that fits: 'size' is tight",
        }
    ],
    "matched": {"p.yaml:7": ["conv1"]},
    "budgets": {"size": {"asked": "25%", "limit": 12, "predicted": 12, "original": 48}},
    "solution": {"solver": "exact", "status": "optimal", "objective": 1e-07, "bound": 1e-07, "gap": 0.0},
}
STEPS = [
    {"kind": "quantize", "rules": [{"select": {"names": ["conv1"]}, "weight": {"bits": 4}}], "ranges": {"x": [0, 1]}}
]


def test_a_plan_is_a_policy_file(tmp_path):
    plan = read({"version": 1, "steps": STEPS, "plan": RECORD})
    assert isinstance(plan, Plan)
    assert plan.plan.layers[0].why == RECORD["layers"][0]["why"]
    plan.save(tmp_path / "x.plan.yaml")
    again = read(tmp_path / "x.plan.yaml")
    assert again == plan
    assert dump(again) == (tmp_path / "x.plan.yaml").read_text() == dump(plan)


def test_a_plan_has_nothing_left_to_choose():
    open_steps = [{"kind": "prune", "rules": [{"sparsity": [0.0, 0.5]}]}]
    with pytest.raises(
        PolicyError, match=r"^policy: search: a plan has every decision made; take out 'search', or take "
    ):
        read({"version": 1, "steps": open_steps, "search": {"budgets": {"size": 1}}, "plan": RECORD})
    with pytest.raises(PolicyError, match=r"steps\[0\].rules\[0\].sparsity: is open \(a list\)"):
        read({"version": 1, "steps": open_steps, "plan": RECORD})


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "p.yaml"
    write_text(target, "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_text(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_others_may_read_what_is_written(tmp_path):
    write_text(tmp_path / "ours", "")
    (tmp_path / "plain").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
