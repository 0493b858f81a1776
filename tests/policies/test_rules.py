"""Rules: what they select, how they add up, and what an unmatched one says."""

from textwrap import dedent, indent

import pytest

from fxcompress.errors import PolicyError
from fxcompress.policies import Prune, Select, parse
from fxcompress.policies.quantizing import QuantizeRule
from fxcompress.policies.rules import Subject, exactly, match

KINDS = ("add", "conv2d", "conv_transpose2d", "linear")
SUBJECTS = [
    Subject("conv1", "conv2d", True),
    Subject("layer1.0.conv", "conv2d", True),
    Subject("layer1.0.up", "conv_transpose2d", True),
    Subject("add", "add", False),
    Subject("fc", "linear", True),
]


def rules_of(text):
    rules = indent(dedent(text).strip(), "  ")
    return parse(f"version: 1\nsteps:\n- kind: quantize\n  rules:\n{rules}", "p.yaml").steps[0].rules


def said(text):
    matched = match(rules_of(text), SUBJECTS, KINDS, "quantize")
    return {m.subject.name: (m.rule.stated() | {"select": None}, m.by) for m in matched}


@pytest.mark.parametrize(
    ("select", "names"),
    [
        ({}, ["conv1", "layer1.0.conv", "layer1.0.up", "fc"]),
        ({"names": ["layer1.*"]}, ["layer1.0.conv", "layer1.0.up"]),
        ({"names": ["*.conv", "f?"]}, ["layer1.0.conv", "fc"]),
        ({"names": ["[cf]*"]}, ["conv1", "fc"]),
        ({"ops": ["conv*"]}, ["conv1", "layer1.0.conv", "layer1.0.up"]),
        ({"ops": ["add"]}, ["add"]),
        ({"ops": ["*"]}, ["conv1", "layer1.0.conv", "layer1.0.up", "add", "fc"]),
        ({"ops": ["conv2d", "linear"], "names": ["layer1.*", "fc"]}, ["layer1.0.conv", "fc"]),
        ({"names": ["Conv1"]}, []),
    ],
)
def test_select(select, names):
    chosen = Select(**select)
    assert [subject.name for subject in SUBJECTS if chosen.matches(subject)] == names


def test_a_name_with_brackets_is_matched_exactly():
    assert Select(names=(exactly("a[0].*"),)).matches(Subject("a[0].*", "linear", True))
    assert not Select(names=(exactly("a[0].*"),)).matches(Subject("a0.b", "linear", True))


def test_the_last_match_wins_field_by_field():
    matched = match(
        rules_of("""
        - weight: {bits: 4, per: tensor}
          input: {bits: 8, observer: {percentile: {q: 99.9}}}
        - select: {names: [layer1.*]}
          weight: {bits: 2}
        - select: {names: [layer1.0.conv, fc]}
          weight: {symmetric: false}
          input: {observer: minmax}
        """),
        SUBJECTS,
        KINDS,
        "quantize",
    )
    found = {m.subject.name: m for m in matched}
    assert list(found) == ["conv1", "layer1.0.conv", "layer1.0.up", "fc"]  # in graph order
    assert [m.by for m in found.values()] == [(0,), (0, 1, 2), (0, 1), (0, 2)]
    conv = found["layer1.0.conv"].rule
    assert conv.weight.plain() == {"bits": 2, "per": "tensor", "symmetric": False}
    assert conv.input.plain() == {"bits": 8, "observer": "minmax"}
    assert found["conv1"].rule.input.plain() == {"bits": 8, "observer": {"percentile": {"q": 99.9}}}
    assert found["fc"].rule.weight.plain() == {"bits": 4, "per": "tensor", "symmetric": False}


def test_a_later_rule_can_take_back():
    found = said("- weight: {bits: 4}\n- select: {names: [fc]}\n  weight: null")
    assert found["fc"][0]["weight"] is None
    assert found["conv1"][0]["weight"].bits == 4


def test_a_later_value_replaces_a_list_whole():
    rules = Prune(rules=({"sparsity": [0, 0.5]}, {"select": {"names": ["fc"]}, "sparsity": 0.25})).rules
    found = {m.subject.name: m.rule.sparsity for m in match(rules, SUBJECTS, KINDS, "prune")}
    assert found == {"conv1": (0.0, 0.5), "layer1.0.conv": (0.0, 0.5), "layer1.0.up": (0.0, 0.5), "fc": 0.25}


@pytest.mark.parametrize(
    ("select", "text"),
    [
        ("{names: [con1]}", "names: 'con1' matches no layer (did you mean 'conv1'?); the model has: conv1, "
         "layer1.0.conv, layer1.0.up, fc"),
        ("{names: [fc, zzz]}", "names: 'zzz' matches no layer; the model has: conv1, layer1.0.conv, layer1.0.up, fc"),
        ("{names: [conv1], ops: [linear]}", "names: 'conv1' matches no layer of kind linear; the model has: fc"),
        ("{ops: [conv2]}", "ops: no operator kind is 'conv2' (did you mean 'conv2d'?); accepted: add, conv2d, "
         "conv_transpose2d, linear"),
    ],
)  # fmt: skip
def test_a_rule_that_matches_nothing(select, text):
    rules = rules_of(f"- weight: {{bits: 8}}\n- select: {select}\n  weight: {{bits: 4}}")
    with pytest.raises(PolicyError) as caught:
        match(rules, SUBJECTS, KINDS, "quantize")
    assert str(caught.value) == f"p.yaml:6: {text}"


def test_a_model_in_which_nothing_matches():
    only_add = [subject for subject in SUBJECTS if subject.kind == "add"]
    with pytest.raises(PolicyError, match=r"^p.yaml:5: names: '\*' matches no layer; the model has none$"):
        match(rules_of("- weight: {bits: 8}"), only_add, KINDS, "quantize")
    with pytest.raises(
        PolicyError, match=r"^p.yaml:5: names: '\*' matches no layer of kind linear; the model has none$"
    ):
        match(rules_of("- select: {ops: [linear]}\n  weight: {bits: 8}"), only_add, KINDS, "quantize")


def test_a_long_list_of_layers_is_cut():
    many = [Subject(f"l{index}", "linear", True) for index in range(20)]
    with pytest.raises(PolicyError, match=r"the model has: l0, l1, l2, l3, l4, l5, l6, l7, \.\.\. \(20 in all\)$"):
        match(rules_of("- {select: {names: [zzz]}, weight: {bits: 8}}"), many, KINDS, "quantize")


def test_a_rule_without_a_file_is_known_by_its_number():
    with pytest.raises(PolicyError, match=r"^quantize rule 1: names: 'a' matches no layer"):
        match([QuantizeRule(select={"names": ["a"]}, weight={"bits": 8})], SUBJECTS, KINDS, "quantize")


def test_a_rule_that_states_nothing():
    with pytest.raises(
        PolicyError, match=r"p.yaml:3: steps\[0\].rules\[0\]: the rule states nothing; write what is to be"
    ):
        parse("version: 1\nsteps:\n- {kind: prune, rules: [{select: {names: [fc]}}]}", "p.yaml")
