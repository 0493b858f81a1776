"""Policies as values: frozen, open where a list stands, closed by a plan, extended by a package."""

import sys
from types import ModuleType

import pytest
from pydantic import ValidationError

from fxcompress.errors import PolicyError
from fxcompress.policies import Policy, Prune, Quantize, Resolve, Select, Step, Supernet, dump, parse, read
from fxcompress.policies.quantizing import QuantizeRule
from fxcompress.policies.rules import Matched, Subject, is_open

OPEN = {
    "kind": "quantize",
    "rules": [{"weight": {"bits": [4, 8]}}, {"select": {"names": ["fc"]}, "weight": {"bits": 8}}],
}


def test_values_are_frozen_and_equal_by_content():
    rule = QuantizeRule(weight={"bits": 8})
    with pytest.raises(ValidationError, match="frozen"):
        rule.weight = None
    assert (
        rule
        == QuantizeRule(weight={"bits": 8})
        == parse("version: 1\nsteps: [{kind: quantize, rules: [{weight: {bits: 8}}]}]", "p.yaml").steps[0].rules[0]
    )
    assert rule != QuantizeRule(weight={"bits": 4})
    assert len({Select(), Select(), Select(names=("a",))}) == 2


def test_a_list_is_open():
    policy = read({"version": 1, "steps": [OPEN], "search": {"budgets": {"size": "25%"}}})
    assert is_open(policy.steps[0].rules[0].weight.bits)
    assert not is_open(policy.steps[0].rules[1].weight.bits)
    assert list(policy.open_fields()) == [("steps", 0, "rules", 0, "weight", "bits")]


@pytest.mark.parametrize("bits", [2, 8, "float", [2, "float"]])
def test_bits(bits):
    spec = QuantizeRule(weight={"bits": bits}).weight
    assert spec.bits == (tuple(bits) if isinstance(bits, list) else bits)


def test_an_open_supernet_needs_no_search():
    steps = [{"kind": "supernet", "rules": [{"kernel_size": [3, 5]}]}]
    assert isinstance(read({"version": 1, "steps": steps}).steps[0], Supernet)
    with pytest.raises(PolicyError, match="search: has nothing to choose"):
        read({"version": 1, "steps": steps, "search": {"budgets": {"size": 1}}})


def test_search_by_default():
    search = read({"version": 1, "steps": [OPEN], "search": {"budgets": {"size": "25%"}}}).search
    assert (search.sensitivity.name, search.solver.name) == ("hessian_trace", "exact")
    assert search.plain() == {"budgets": {"size": "25%"}}


def test_references_find_ours_by_bare_name_and_yours_by_dotted_name():
    search = read(
        {
            "version": 1,
            "steps": [OPEN],
            "search": {"budgets": {"size": 1}, "solver": "exact", "sensitivity": {"math:sqrt": {"x": 4}}},
        }
    ).search
    assert search.solver.function({"exact": max}) is max
    assert search.sensitivity.function({})(*search.sensitivity.args.values()) == 2
    missing = search.replaced(sensitivity="math:sqr").sensitivity
    with pytest.raises(PolicyError, match=r"^module 'math' has no 'sqr' \(did you mean 'sqrt'\?\)$"):
        missing.function({})
    missing = search.replaced(sensitivity="mathz.x:sqr").sensitivity
    with pytest.raises(
        PolicyError, match=r"^cannot import module 'mathz.x' of 'mathz.x:sqr': No module named 'mathz'$"
    ):
        missing.function({})


def test_budgets_can_be_replaced():
    policy = read({"version": 1, "steps": [OPEN], "search": {"budgets": {"size": "25%", "bops": 5}}})
    assert policy.with_budgets({"size": "10%"}).search.plain() == {"budgets": {"size": "10%", "bops": 5}}
    with pytest.raises(ValueError, match="the policy has no search, so it takes no budgets"):
        read("w8").with_budgets({"size": 1})


def test_closing_a_step_groups_what_is_treated_alike():
    step = parse(
        "version: 1\n"
        "steps:\n"
        "- kind: quantize\n"
        "  rules:\n"
        "  - weight: {bits: [4, 8], per: tensor}\n"
        "    input: {bits: 8}\n"
        "search: {budgets: {size: 1}}",
        "p.yaml",
    ).steps[0]  # fmt: skip
    subjects = [*(Subject(name, "linear", True) for name in ("a", "b[0]", "c")), Subject("add", "add", False)]
    decided = {"a": {"weight.bits": 4}, "b[0]": {"weight.bits": 8, "sparsity": 0.5}, "c": {"weight.bits": 4}}
    closed = step.closed([Matched(subject, step.rules[0], (0,)) for subject in subjects], decided)
    assert closed.plain() == {
        "kind": "quantize",
        "rules": [
            {"select": {"names": ["a", "c"]}, "weight": {"bits": 4, "per": "tensor"}, "input": {"bits": 8}},
            {"select": {"names": ["b[[]0]"]}, "weight": {"bits": 8, "per": "tensor"}, "input": {"bits": 8}},
            {"select": {"names": ["add"], "ops": ["add"]}, "input": {"bits": 8}},
        ],
    }
    assert closed.at == step.at


def test_closing_fills_in_a_field_of_its_own():
    step = Prune(rules=({"sparsity": [0.0, 0.5]},))
    closed = step.closed([Matched(Subject("a", "linear", True), step.rules[0], (0,))], {"a": {"sparsity": 0.5}})
    assert closed == Prune(rules=({"select": {"names": ("a",)}, "sparsity": 0.5},))


class Noise(Step):
    """A third-party step."""

    level: float
    seeds: tuple[int, ...] = ()


@pytest.fixture
def package(monkeypatch):
    module = ModuleType("noisy")
    module.Noise = Noise
    module.noise = lambda: None
    monkeypatch.setitem(sys.modules, "noisy", module)


def test_a_step_of_ones_own(package):
    text = "version: 1\nsteps:\n- kind: noisy:Noise\n  level: 0.5\n- fold_batch_norm\n"
    policy = parse(text, "p.yaml")
    assert policy.steps[0] == Noise(kind="noisy:Noise", level=0.5)
    assert policy.steps[0].at == "p.yaml:3"
    assert parse(dump(policy), "again") == policy
    assert (
        Policy(version=1, steps=(Noise(kind="noisy:Noise", level=0.5), Resolve(choose={"a": "b"}))).steps[0].level
        == 0.5
    )


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("{kind: 'noisy:Nois', level: 1}", "p.yaml:2: steps[0].kind: module 'noisy' has no 'Nois' (did you mean "
         "'Noise'?)"),
        ("{kind: 'noisy:noise', level: 1}", "p.yaml:2: steps[0].kind: 'noisy:noise' is not a subclass of "
         "fxcompress.policies.Step"),
        ("{kind: 'no_such.package:X'}", "p.yaml:2: steps[0].kind: cannot import module 'no_such.package' of "
         "'no_such.package:X': No module named 'no_such'"),
        ("\n  kind: noisy:Noise\n  levl: 3", "p.yaml:4: steps[0].levl: unknown key 'levl' (did you mean 'level'?); "
         "accepted: kind, level, seeds"),
        ("\n  kind: noisy:Noise\n  level: loud\n  seeds: [1, x]", "p.yaml:4: steps[0].level: should be a number, not "
         "'loud'\np.yaml:5: steps[0].seeds[1]: should be a whole number, not 'x'"),
        ("'noisy:Noise'", "p.yaml:2: steps[0].level: is required"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_step_of_ones_own(package, step, said):
    with pytest.raises(PolicyError) as caught:
        parse(
            f"version: 1\nsteps: [{step}]" if not step.startswith("\n") else f"version: 1\nsteps:\n-{step[2:]}",
            "p.yaml",
        )
    assert str(caught.value) == said


def test_a_search_may_be_left_to_steps_of_ones_own(package):
    steps = [{"kind": "noisy:Noise", "level": 1}]
    assert read({"version": 1, "steps": steps, "search": {"budgets": {"size": 1}}}).search is not None


def test_ranges():
    step = Quantize(rules=({"input": {"bits": 8}},), ranges={"x": [0, 1], "y": (-0.5, 0.5)})
    assert step.ranges == {"x": (0.0, 1.0), "y": (-0.5, 0.5)}
    assert step.plain()["ranges"] == {"x": [0.0, 1.0], "y": [-0.5, 0.5]}
