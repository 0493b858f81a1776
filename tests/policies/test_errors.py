"""What is wrong with a policy file: each error with its place and its whole text."""

import pytest

from fxcompress.errors import PolicyError
from fxcompress.policies import parse, read

KINDS = "fold_batch_norm, equalize, split_channels, quantize, prune, supernet, resolve"
ACCEPTED = f"accepted: {KINDS}, or your own as package.module:Class"
FORM = "a step is a mapping with a kind, for example 'kind: quantize'"
WORDS = "'binary', 'ternary', 'e4m3', 'e5m2' or 'float'"
BITS = f"bits are not accepted; write a whole number from 2 to 8, 16, {WORDS}"
SPARSITY = "is not accepted; write the share of zeros, from 0.0 to below 1.0"
OPTIONS = "a list offers two or more different options; write one value plainly"
WEIGHT = "accepted: bits, per, group_size, symmetric, narrow, power_of_two, codebook, allocate, observer"
RANGE = "is not a range; write two numbers, [low, high]"
OWN = "or your own as package.module:attribute"
SIZES = "accepted units: %, B, kB, KB, MB, GB, KiB, MiB, GiB"
UNITS = "accepted: %, B, BOPs, GB, GBOPs, GiB, KB, KiB, MB, MBOPs, MiB, TBOPs, kB, kBOPs, ms, ns, s, us"
LATENCY = "latency takes {max: 6 ms, table: FILE}, not"
TOP = "a policy is a mapping with version, steps and search, but this is"


def message(text, name="p.yaml", **kwargs):
    with pytest.raises(PolicyError) as caught:
        parse(text, name, **kwargs)
    return str(caught.value)


def indented(text, spaces):
    return "\n".join(" " * spaces + line for line in text.split("\n"))


@pytest.mark.parametrize(
    ("rule", "line", "key", "said"),
    [
        ("weights: {}", 5, ".weights", "unknown key 'weights' (did you mean 'weight'?); accepted: select, weight, "
         "input"),
        ("weight: {bits: 4, width: x}", 5, ".weight.width", f"unknown key 'width'; {WEIGHT}"),
        ("weight:\n  bits: 4\n  pre: x", 7, ".weight.pre", f"unknown key 'pre' (did you mean 'per'?); {WEIGHT}"),
        ("input: {group_size: 8}", 5, ".input.group_size",
         "unknown key 'group_size'; accepted: bits, symmetric, narrow, power_of_two, dynamic, per, observer"),
        ("weight: {bits: 9}", 5, ".weight.bits", f"9 {BITS}"),
        ("weight: {bits: 1}", 5, ".weight.bits", f"1 {BITS}"),
        ("weight: {bits: 4.5}", 5, ".weight.bits", f"4.5 {BITS}"),
        ("weight: {bits: true}", 5, ".weight.bits", f"True {BITS}"),
        ("weight: {bits: int8}", 5, ".weight.bits", f"'int8' {BITS}"),
        ("weight:\n  bits: [4, 12]", 6, ".weight.bits", f"12 {BITS}"),
        ("weight: {bits: [8]}", 5, ".weight.bits", OPTIONS),
        ("weight: {bits: [8, 8]}", 5, ".weight.bits", OPTIONS),
        ("weight: {symmetric: 7}", 5, ".weight.symmetric", "should be true or false, not 7"),
        ("weight: 8", 5, ".weight", "should be a mapping, not 8"),
        ("select: {names: conv1}", 5, ".select.names", "should be a list, not 'conv1'"),
        ("select: {names: [a, 1]}", 5, ".select.names[1]", "should be a text, not 1"),
        ("weight: {observer: [minmax]}", 5, ".weight.observer", "write a name, or one name with its arguments: "
         "'name: {argument: value}'"),
        ("weight: {per: chanel}", 5, ".weight.per", "should be 'channel', 'tensor' or 'group', not 'chanel' (did "
         "you mean 'channel'?)"),
        ("weight: {observer: min_max}", 5, ".weight.observer", "unknown name 'min_max' (did you mean 'minmax'?); "
         f"accepted: minmax, percentile, entropy, mse, aciq, {OWN}"),
        ("weight: {observer: moving_average}", 5, ".weight.observer",
         f"unknown name 'moving_average'; accepted: minmax, percentile, entropy, mse, aciq, {OWN}"),
        ("input:\n  observer:\n    percentile:\n      q: 5", 8, ".input.observer.percentile.q", "should be greater "
         "than 50, not 5"),
        ("input:\n  observer:\n    percentile:\n      p: 9", 8, ".input.observer.percentile.p", "unknown key 'p'; "
         "accepted: q"),
        ("weight: {bits: [4, 8]}", 5, ".weight.bits", "is open (a list), but there is no search to choose; write one "
         "value, or add for example 'search: {budgets: {size: 25%}}'"),
    ],
)  # fmt: skip
def test_rules(rule, line, key, said):
    text = f"version: 1\nsteps:\n- kind: quantize\n  rules:\n  - {indented(rule, 4).strip()}"
    assert message(text) == f"p.yaml:{line}: steps[0].rules[0]{key}: {said}"


@pytest.mark.parametrize(
    ("step", "line", "key", "said"),
    [
        ("kind: quantise", 2, ".kind", f"unknown kind 'quantise' (did you mean 'quantize'?); {ACCEPTED}"),
        ("kind: zzz", 2, ".kind", f"unknown kind 'zzz'; {ACCEPTED}"),
        ("rules: []", 2, "", FORM),
        ("3", 2, "", FORM),
        ("kind: quantize", 2, ".rules", "is required"),
        ("kind: quantize\nrules: []", 3, ".rules", "write at least one rule"),
        ("kind: quantize\nrules: {a: 8}", 3, ".rules", "should be a list, not {'a': 8}"),
        ("kind: quantize\nrules: [8]", 3, ".rules[0]", "should be a mapping, not 8"),
        ("kind: quantize\nrules: [{input: {bits: 8}}]\nranges:\n  x: [1, 0]", 5, ".ranges.x", f"[1, 0] {RANGE}"),
        ("kind: quantize\nrules: [{input: {bits: 8}}]\nranges: {x: [0, .inf]}", 4, ".ranges.x", f"[0, inf] {RANGE}"),
        ("kind: fold_batch_norm\nrules: []", 3, ".rules", "unknown key 'rules'; accepted: kind"),
        ("kind: prune\nrules:\n- sparsity: 1.0", 4, ".rules[0].sparsity", f"a sparsity of 1.0 {SPARSITY}"),
        ("kind: prune\nrules:\n- sparsity: 50%", 4, ".rules[0].sparsity", f"a sparsity of '50%' {SPARSITY}"),
        ("kind: prune\nrules:\n- sparsity: [0, .nan]", 4, ".rules[0].sparsity", f"a sparsity of nan {SPARSITY}"),
        ("kind: supernet\nrules:\n- {}", 4, ".rules[0].kernel_size", "is required"),
        ("kind: supernet\nrules:\n- kernel_size: [3, 4]", 4, ".rules[0].kernel_size", "a kernel size of 4 is not "
         "accepted; write a positive odd number such as 1, 3 or 5"),
        ("kind: resolve\nchoose: {}", 3, ".choose", "should not be empty, not {}"),
        ("kind: resolve\nchoose: {a: 3}", 3, ".choose.a", "should be a text, not 3"),
    ],
)  # fmt: skip
def test_steps(step, line, key, said):
    assert message(f"steps:\n- {indented(step, 2).strip()}\nversion: 1") == f"p.yaml:{line}: steps[0]{key}: {said}"


@pytest.mark.parametrize(
    ("search", "line", "key", "said"),
    [
        ("{}", 5, ".budgets", "is required"),
        ("{budgets: {}}", 5, ".budgets", "write at least one budget, for example 'size: 25%'"),
        ("\n  budgets:\n    siez: 5%", 7, ".budgets.siez", "unknown budget 'siez' (did you mean 'size'?); accepted: "
         "size, bops, latency, or your own as package.module:cost"),
        ("\n  budgets:\n    size: 5 ms", 7, ".budgets.size", f"'5 ms' is no amount of size; {SIZES}"),
        ("{budgets: {size: 5 Mb}}", 5, ".budgets.size", "'5 Mb' has an unknown unit 'Mb' (did you mean 'MB'?); "
         f"{UNITS}"),
        ("{budgets: {size: lots}}", 5, ".budgets.size", "'lots' is not an amount; write for example '25%', '1.2 MB', "
         "'3 ms' or '40 MBOPs'"),
        ("{budgets: {latency: 5 ms}}", 5, ".budgets.latency", f"{LATENCY} max"),
        ("{budgets: {latency: {max: 5 ms, tabel: x}}}", 5, ".budgets.latency", f"{LATENCY} max, tabel"),
        ("{budgets: {latency: {table: x}}}", 5, ".budgets.latency", "write the limit as 'max', for example 'max: 6 "
         "ms'"),
        ("{budgets: {size: {max: 5%, table: x}}}", 5, ".budgets.size", "size takes {max: 25%}, not max, table"),
        ("{budgets: {'a.b:c': 5 ms}}", 5, ".budgets.a.b:c", "'5 ms' is no amount of a.b:c; accepted units: %, none"),
        ("{budgets: {size: 5%}, solver: exakt}", 5, ".solver", "unknown name 'exakt' (did you mean 'exact'?); "
         f"accepted: exact, {OWN}"),
        ("{budgets: {size: 5%}, solver: {exact: {time_limit: -1}}}", 5, ".solver.exact.time_limit", "should be "
         "greater than 0, not -1"),
        ("{budgets: {size: 5%}, sensitivity: {hessian_trace: {probes: x}}}", 5, ".sensitivity.hessian_trace.probes",
         "should be a whole number, not 'x'"),
    ],
)  # fmt: skip
def test_searches(search, line, key, said):
    text = f"version: 1\nsteps:\n- kind: quantize\n  rules: [{{weight: {{bits: [4, 8]}}}}]\nsearch: {search}"
    assert message(text) == f"p.yaml:{line}: search{key}: {said}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", f"1: {TOP} empty"),
        ("- kind: quantize", f"1: {TOP} a list"),
        ("steps: [fold_batch_norm]", "1: version: is required"),
        ("version: 1", "1: steps: is required"),
        ("version: 1\nsteps: []", "2: steps: write at least one step, for example '- kind: fold_batch_norm'"),
        ("version: 1\nsteps:", "2: steps: should be a list, not None"),
        ("version: 2\nsteps: [fold_batch_norm]", "1: version: should be 1, not 2"),
        ("version: '1'\nsteps: [fold_batch_norm]", "1: version: should be 1, not '1'"),
        ("version: 1\nstep: []", "2: step: unknown key 'step' (did you mean 'steps'?); accepted: version, steps, "
         "search, tune, data, target, capture"),
        ("version: 1\nsteps: [fold_batch_norm]\nsearch: {budgets: {size: 25%}}", "3: search: has nothing to choose: "
         "no bits or sparsity is open; offer a list such as 'bits: [4, 8]'"),
        ("version: 1\nsteps: [a\nsearch: b", "3: not valid YAML: expected ',' or ']', but got ':'"),
        ("version: 1\nsteps:\n\t- a", "3: not valid YAML: found character '\\t' that cannot start any token"),
        ("version: 1\nsteps: []\nversion: 1", '3: not valid YAML: found duplicate key "version" with value "1" '
         '(original value: "1")'),
        ("version: 1\n---\nversion: 1", "2: not valid YAML: but found another document"),
    ],
)  # fmt: skip
def test_files(text, said):
    assert message(text) == f"p.yaml:{said}"


def test_all_problems_are_said_at_once():
    text = "version: 1\nsteps:\n- kind: prune\n  rules:\n  - sparsity: 2\n- kind: quantize\n  rules: 3"
    assert message(text).splitlines() == [
        f"p.yaml:5: steps[0].rules[0].sparsity: a sparsity of 2 {SPARSITY}",
        "p.yaml:7: steps[1].rules: should be a list, not 3",
    ]


def test_json():
    assert message('{"version": 1,\n\t"steps": [}', "p.json") == "p.json:2: not valid JSON: Expecting value"
    assert message('{"version":1,\n"steps":[\n\t{"kind":"prun"}]}', "p.json") == (
        f"p.json:3: steps[0].kind: unknown kind 'prun' (did you mean 'prune'?); {ACCEPTED}"
    )


def test_a_character_that_no_text_holds():
    assert message("version: \x01") == (
        "p.yaml: not valid YAML: unacceptable character #x0001: special characters are not allowed in "
        '"<unicode string>", position 9'
    )


def test_what_is_merged_in():
    text = "version: 1\nsteps:\n- kind: quantize\n  rules:\n  - &a {weight: {bits: 8}}\n  - <<: *a\n    weigth: 1"
    assert message(text).startswith("p.yaml:7: steps[0].rules[1].weigth: unknown key 'weigth'")
    text = "version: 1\nsteps:\n- kind: quantize\n  rules:\n  - &a\n    weight: 8\n  - <<: *a\n    input: {}"
    assert message(text).splitlines()[1] == "p.yaml:7: steps[0].rules[1].weight: should be a mapping, not 8"


def test_a_mapping_has_no_lines():
    with pytest.raises(
        PolicyError, match=r"^policy: steps\[0\].kind: unknown kind 'prun' \(did you mean 'prune'\?\); "
    ):
        read({"version": 1, "steps": [{"kind": "prun"}]})
    with pytest.raises(
        PolicyError, match=r"^a policy is the name of a preset, a file, a mapping or a Policy, not int$"
    ):
        read(3)


@pytest.mark.parametrize(
    "text",
    [
        "steps: [{kind: 'os:path'}]",
        "steps: ['os:path']",
        "steps: [{kind: quantize, rules: [{input: {bits: 8, observer: 'a:b'}}]}]",
        "steps: [{kind: quantize, rules: [{input: {bits: 8, observer: {'a:b': {}}}}]}]",
        "steps: [{kind: prune, rules: [{sparsity: [0, 0.5]}]}]\nsearch: {budgets: {'a:b': 5}}",
        "steps: [{kind: prune, rules: [{sparsity: [0, 0.5]}]}]\nsearch: {budgets: {size: 5}, solver: 'a:b'}",
        "steps: [{kind: prune, rules: [{sparsity: [0, 0.5]}]}]\nsearch: {budgets: {size: 5}, sensitivity: 'a:b'}",
    ],
)
def test_a_dotted_name_runs_code_and_can_be_refused(text):
    assert "runs code; --builtin-only refuses it" in message(f"version: 1\n{text}", builtin_only=True)
