"""The words of the quantize step: what means nothing is refused, and what a decision leaves of a rule."""

import pytest

from fxcompress.errors import PolicyError
from fxcompress.policies import Quantize, parse, read
from fxcompress.policies.quantizing import InputSpec, WeightSpec
from fxcompress.policies.rules import Matched, Subject

EVEN = "is for whole numbers of bits, not for"
GROUP = "group_size is for 'per: group', not for 'per: channel'"
TOKEN = "per token needs 'dynamic: true'"


def refused(*rules):
    """Return what is said of the rules of a quantize step."""
    with pytest.raises(PolicyError) as caught:
        read({"version": 1, "steps": [{"kind": "quantize", "rules": list(rules)}], "search": SEARCH})
    return str(caught.value)


SEARCH = {"budgets": {"size": "50%"}}


@pytest.mark.parametrize(
    ("weight", "field", "said"),
    [
        ({"bits": 4, "group_size": 32}, "group_size", GROUP),
        ({"bits": 4, "per": "tensor", "group_size": 32}, "group_size", GROUP.replace("channel", "tensor")),
        ({"bits": 16, "codebook": "apot"}, "codebook", "codebook apot takes 2 to 8 bits, not 16"),
        ({"bits": "binary", "codebook": "kmeans"}, "codebook", "codebook kmeans takes 2 to 8 bits, not 'binary'"),
        ({"bits": [4, "e4m3"], "codebook": "apot"}, "codebook", "codebook apot takes 2 to 8 bits, not 'e4m3'"),
        ({"bits": 4, "codebook": "apot", "symmetric": True}, "symmetric",
         "symmetric is for even steps, not for codebook apot"),
        ({"codebook": "kmeans", "narrow": True}, "narrow", "narrow is for even steps, not for codebook kmeans"),
        ({"bits": 4, "codebook": "apot", "power_of_two": True}, "power_of_two",
         "power_of_two is for even steps, not for codebook apot"),
        ({"bits": "ternary", "symmetric": False}, "symmetric", f"symmetric {EVEN} 'ternary'"),
        ({"bits": "e4m3", "narrow": True}, "narrow", f"narrow {EVEN} 'e4m3'"),
        ({"bits": ["binary", "e5m2"], "power_of_two": True}, "power_of_two", f"power_of_two {EVEN} 'binary'"),
        ({"bits": "binary", "observer": "mse"}, "observer",
         "observer finds a range, and bits 'binary' have none: the weight itself gives the levels"),
        ({"bits": 4, "codebook": "kmeans", "observer": "mse"}, "observer",
         "observer finds a range, and codebook kmeans has none: the weight itself gives the levels"),
        ({"bits": 4, "codebook": "kmeans", "per": "channel"}, "per",
         "per channel is not for codebook kmeans, one for the whole weight; take it out, or write tensor"),
        ({"bits": 16, "allocate": True}, "allocate", "allocate takes 2 to 8 bits, not 16"),
        ({"bits": "ternary", "allocate": True}, "allocate", "allocate takes 2 to 8 bits, not 'ternary'"),
        ({"bits": [4, 8], "allocate": True}, "allocate", "allocate takes one number of bits, not the list [4, 8]"),
        ({"bits": [4, "e4m3"], "allocate": True}, "allocate",
         "allocate takes one number of bits, not the list [4, 'e4m3']"),
        ({"bits": 4, "per": "tensor", "allocate": True}, "allocate",
         "allocate is for 'per: channel', not for 'per: tensor'"),
        ({"bits": 4, "per": "group", "allocate": True}, "allocate",
         "allocate is for 'per: channel', not for 'per: group'"),
        ({"bits": 4, "codebook": "apot", "allocate": True}, "allocate",
         "allocate is for even steps, not for codebook apot"),
    ],
)  # fmt: skip
def test_weights(weight, field, said):
    assert refused({"weight": weight}) == f"policy: steps[0].rules[0].weight.{field}: {said}"


@pytest.mark.parametrize(
    ("input", "field", "said"),
    [
        ({"bits": 8, "per": "token"}, "per", TOKEN),
        ({"bits": 8, "per": "token", "dynamic": False}, "per", TOKEN),
        ({"bits": 8, "dynamic": True, "observer": "minmax"}, "observer",
         "observer finds a range beforehand, and 'dynamic: true' takes that of each call; take one of them out"),
        ({"bits": "e4m3", "dynamic": True}, "dynamic", f"dynamic {EVEN} 'e4m3'"),
        ({"bits": [8, "e4m3"], "dynamic": True}, "dynamic", f"dynamic {EVEN} 'e4m3'"),
        ({"bits": "e5m2", "symmetric": True}, "symmetric", f"symmetric {EVEN} 'e5m2'"),
    ],
)  # fmt: skip
def test_inputs(input, field, said):
    assert refused({"input": input}) == f"policy: steps[0].rules[0].input.{field}: {said}"


def test_in_a_file_with_its_line():
    text = "version: 1\nsteps:\n- kind: quantize\n  rules:\n  - weight:\n      bits: 4\n      group_size: 32"
    with pytest.raises(PolicyError) as caught:
        parse(text, "p.yaml")
    assert str(caught.value) == f"p.yaml:7: steps[0].rules[0].weight.group_size: {GROUP}"


@pytest.mark.parametrize("bits", [9, 15, 12, 1, "int8", True, 4.5])
def test_bits(bits):
    words = "'binary', 'ternary', 'e4m3', 'e5m2' or 'float'"
    said = f"{bits!r} bits are not accepted; write a whole number from 2 to 8, 16, {words}"
    assert refused({"weight": {"bits": bits}}) == f"policy: steps[0].rules[0].weight.bits: {said}"


def test_bits_of_inputs():
    said = "'ternary' bits are not accepted; write a whole number from 2 to 8, 16, 'e4m3', 'e5m2' or 'float'"
    assert refused({"input": {"bits": "ternary"}}) == f"policy: steps[0].rules[0].input.bits: {said}"


@pytest.mark.parametrize("size", [1, 0, 2.5, "all", False])
def test_group_sizes(size):
    said = f"a group size of {size!r} is not accepted; write a whole number of weights from 2, such as 128"
    found = refused({"weight": {"bits": 4, "per": "group", "group_size": size}})
    assert found == f"policy: steps[0].rules[0].weight.group_size: {said}"


def test_rules_that_complete_each_other():
    groups = {"weight": {"bits": 4, "per": "group"}}, {"select": {"names": ["a"]}, "weight": {"group_size": 32}}
    tokens = {"input": {"bits": 8, "dynamic": True}}, {"select": {"ops": ["linear"]}, "input": {"per": "token"}}
    for rules in (groups, groups[::-1], tokens, tokens[::-1]):
        assert Quantize(rules=rules).rules
    assert "'per: group'" in refused(groups[1], {"weight": {"bits": 4}})
    assert TOKEN in refused(tokens[1], {"input": {"bits": 8}})


def test_rules_whose_later_bits_silence_the_earlier():
    step = Quantize(
        rules=[
            {"weight": {"bits": 4, "symmetric": False, "observer": "mse", "per": "group", "group_size": 64}},
            {"select": {"names": ["head"]}, "weight": {"bits": "ternary"}},
        ]
    )
    merged = step.rules[0].merged(step.rules[1])
    assert merged.weight.decided({}).plain() == {"bits": "ternary", "per": "group", "group_size": 64}


@pytest.mark.parametrize(
    ("stated", "decided", "left"),
    [
        ({"bits": ["ternary", 4], "observer": "mse"}, {"bits": 4}, {"bits": 4, "observer": "mse"}),
        ({"bits": ["ternary", 4], "observer": "mse"}, {"bits": "ternary"}, {"bits": "ternary"}),
        ({"bits": [4, "float"], "codebook": "apot"}, {"bits": "float"}, {"bits": "float"}),
        ({"bits": 4, "per": "group", "group_size": [32, 64]}, {"group_size": 64},
         {"bits": 4, "per": "group", "group_size": 64}),
        ({"bits": [4, 8], "symmetric": True}, {}, {"bits": [4, 8], "symmetric": True}),
        ({"bits": 4, "codebook": "kmeans", "per": "channel"}, {}, {"bits": 4, "codebook": "kmeans"}),
        ({"bits": 4, "allocate": True}, {}, {"bits": 4, "allocate": True}),
        ({"bits": 16, "allocate": True}, {}, {"bits": 16}),
    ],
)  # fmt: skip
def test_what_a_decision_leaves(stated, decided, left):
    assert WeightSpec.model_validate(stated).decided(decided).plain() == left


def test_a_dynamic_input_keeps_no_observer():
    spec = InputSpec(bits=8, dynamic=True, per="token", observer="minmax")
    assert spec.decided({}).plain() == {"bits": 8, "dynamic": True, "per": "token"}


def test_closing_writes_what_was_decided():
    rule = {"weight": {"bits": ("binary", 4, "float"), "per": "group", "group_size": (32, 64), "observer": "mse"}}
    step = Quantize(rules=[rule])
    names = ("a", "b", "c")
    matched = [Matched(Subject(name, "linear", True), step.rules[0], (0,)) for name in names]
    decided = {
        "a": {"weight.bits": 4, "weight.group_size": 64},
        "b": {"weight.bits": "binary", "weight.group_size": 32},
        "c": {"weight.bits": "float"},
    }
    closed = step.closed(matched, decided)
    assert [rule.plain()["weight"] for rule in closed.rules] == [
        {"bits": 4, "per": "group", "group_size": 64, "observer": "mse"},
        {"bits": "binary", "per": "group", "group_size": 32},
        {"bits": "float"},
    ]
    assert Quantize.model_validate(closed.plain()) == closed
