"""The JSON Schema: editors complete every key, and it accepts what the reader accepts."""

import json
from importlib import resources

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from fxcompress.errors import PolicyError
from fxcompress.policies import presets, read, schema

VALIDATOR = Draft202012Validator(schema())
QUANTIZE = {"kind": "quantize", "rules": [{"weight": {"bits": 8}}]}
OPEN = {"kind": "prune", "rules": [{"sparsity": [0.0, 0.5]}]}
SIZE = {"budgets": {"size": "25%"}}


def of(step, **more):
    return {"version": 1, "steps": [step], **more}


def rule(**fields):
    return of({"kind": "quantize", "rules": [fields]})


def test_it_is_a_json_schema():
    Draft202012Validator.check_schema(schema())
    assert json.loads(json.dumps(schema())) == schema()
    assert schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema()["title"] == "fxcompress policy"


@pytest.mark.parametrize("name", presets())
def test_presets(name):
    text = (resources.files("fxcompress.policies") / "presets" / f"{name}.yaml").read_text()
    VALIDATOR.validate(YAML(typ="safe").load(text))


GOOD = [
    of("fold_batch_norm"),
    of({"kind": "fold_batch_norm"}),
    rule(
        select={"names": ["conv*"], "ops": ["conv2d"]}, weight={"bits": "float", "per": "tensor", "symmetric": False}
    ),
    rule(weight={"observer": "mse"}, input={"bits": 2, "observer": {"percentile": {"q": 99.9}}}),
    rule(weight={"bits": 16, "narrow": False}, input={"bits": 16, "narrow": None}),
    rule(weight={"bits": "ternary", "per": "group", "group_size": 2}, input={"bits": "e5m2"}),
    rule(
        weight={"bits": 4, "codebook": "apot", "observer": "mse"}, input={"bits": 4, "dynamic": True, "per": "token"}
    ),
    rule(weight={"bits": "e4m3", "observer": "minmax"}, input={"bits": 8, "dynamic": False, "observer": "minmax"}),
    rule(weight={"bits": 8, "codebook": "kmeans", "per": "tensor"}, input={"dynamic": True, "symmetric": True}),
    rule(weight={"bits": 4, "allocate": True, "symmetric": False, "observer": "aciq"}),
    rule(weight={"bits": [4, "e4m3"], "allocate": False}) | {"search": SIZE},
    of(QUANTIZE, data="zeroq"),
    of(QUANTIZE, data={"zeroq": {"batches": 2, "batch_size": 4, "iterations": 10, "seed": 1}}),
    of(QUANTIZE, data={"my.own:batches": {"anything": 1}}),
    rule(weight={"codebook": None, "symmetric": True}, input={"bits": "float", "symmetric": True}),
    of(
        {"kind": "quantize", "rules": [{"weight": {"bits": ["binary", 4], "symmetric": False, "observer": "mse"}}]},
        search=SIZE,
    ),
    of({"kind": "quantize", "rules": [{"weight": {"bits": 4, "per": "group", "group_size": [32, 64]}}]}, search=SIZE),
    of({"kind": "quantize", "rules": [{"weight": {"bits": [4, "float"], "codebook": "apot"}}]}, search=SIZE),
    of({"kind": "quantize", "rules": [{"input": {"bits": ["e4m3", 8], "symmetric": True}}]}, search=SIZE),
    rule(weight=None, input={"observer": {"minmax": None}}),
    rule(input={"observer": "math:sqrt"}),
    rule(input={"observer": {"math:sqrt": {"of": 2}}}),
    of({**QUANTIZE, "ranges": {"x": [-1, 1.5]}}),
    of({"kind": "supernet", "rules": [{"kernel_size": [3, 5]}]}),
    of({"kind": "resolve", "choose": {"a": "b"}}),
    of(OPEN, search=SIZE),
    of(OPEN, search={"budgets": {"size": 100, "bops": "1.5 GBOPs", "latency": {"max": "6 ms", "table": "t.json"}}}),
    of(OPEN, search={"budgets": {"my.cost:watts": "3%", "my.cost:grams": {"max": 3, "each": 2}}}),
    of(
        OPEN, search={**SIZE, "solver": {"exact": {"time_limit": 5}}, "sensitivity": {"hessian_trace": {"probes": 8}}}
    ),
    of(OPEN, search={**SIZE, "solver": "my.solver:mine", "sensitivity": {"my.own:rise": {}}}),
]
BAD = [
    {},
    [],
    of(QUANTIZE, serch=SIZE),
    of(QUANTIZE) | {"version": 2},
    {"version": 1, "steps": []},
    of({"rules": [{"weight": {"bits": 8}}]}),
    of({"kind": "quantise", "rules": []}),
    of("quantize"),
    of({"kind": "quantize"}),
    of({"kind": "quantize", "rules": []}),
    of({"kind": "fold_batch_norm", "rules": []}),
    rule(weights={"bits": 8}),
    rule(weight={"bits": 9}),
    rule(weight={"bits": [8]}),
    rule(weight={"bits": [8, 8]}),
    rule(weight={"bits": 8, "per": "row"}),
    rule(weight={"bits": "int8"}),
    rule(select={"names": "conv1"}, weight={"bits": 8}),
    rule(select={"names": []}, weight={"bits": 8}),
    rule(weight={"bits": 12}),
    rule(weight={"bits": True}),
    rule(input={"bits": "ternary"}),
    rule(weight={"bits": 4, "per": "token"}),
    rule(input={"bits": 4, "per": "group"}),
    rule(weight={"bits": 4, "per": "group", "group_size": 1}),
    rule(weight={"bits": 4, "per": "group", "group_size": [32]}),
    rule(weight={"bits": 4, "per": "channel", "group_size": 32}),
    rule(weight={"bits": 16, "codebook": "apot"}),
    rule(weight={"bits": "e4m3", "codebook": "kmeans"}),
    of({"kind": "quantize", "rules": [{"weight": {"bits": [4, "ternary"], "codebook": "apot"}}]}, search=SIZE),
    rule(weight={"bits": 4, "codebook": "apot", "symmetric": True}),
    rule(weight={"bits": "ternary", "narrow": True}),
    rule(weight={"bits": "e5m2", "power_of_two": True}),
    of({"kind": "quantize", "rules": [{"weight": {"bits": ["binary", "e4m3"], "symmetric": True}}]}, search=SIZE),
    rule(weight={"bits": "binary", "observer": "minmax"}),
    rule(weight={"bits": 4, "codebook": "kmeans", "observer": "minmax"}),
    rule(weight={"bits": 4, "codebook": "kmeans", "per": "channel"}),
    rule(weight={"bits": "binary", "allocate": True}),
    rule(weight={"bits": 4, "allocate": True, "per": "group"}),
    rule(weight={"bits": 4, "allocate": True, "codebook": "kmeans"}),
    rule(weight={"bits": [4, 8], "allocate": True}) | {"search": SIZE},
    of(QUANTIZE, data="zeroQ"),
    of(QUANTIZE, data={"zeroq": {"batches": 0}}),
    rule(input={"bits": 8, "dynamic": False, "per": "token"}),
    rule(input={"bits": 8, "dynamic": True, "observer": "minmax"}),
    rule(input={"bits": "e4m3", "dynamic": True}),
    rule(input={"bits": "e4m3", "symmetric": True}),
    rule(weight={"bits": 8, "observer": "moving_average"}),
    rule(input={"bits": 8, "observer": {"percentile": {"p": 99}}}),
    rule(input={"bits": 8, "observer": {"percentile": {}, "minmax": {}}}),
    of({**QUANTIZE, "ranges": {"x": [1]}}),
    of({"kind": "prune", "rules": [{"sparsity": 1.0}]}),
    of({"kind": "supernet", "rules": [{"kernel_size": 4}]}),
    of({"kind": "resolve", "choose": {}}),
    of(OPEN, search={}),
    of(OPEN, search={"budgets": {}}),
    of(OPEN, search={"budgets": {"siez": 1}}),
    of(OPEN, search={"budgets": {"size": "3 ms"}}),
    of(OPEN, search={"budgets": {"size": -1}}),
    of(OPEN, search={"budgets": {"latency": "3 ms"}}),
    of(OPEN, search={"budgets": {"latency": {"max": "3 ms", "tabel": "t.json"}}}),
    of(OPEN, search={"budgets": {"my.cost:watts": {"each": 2}}}),
    of(OPEN, search={**SIZE, "solver": "exakt"}),
    of(OPEN, search={**SIZE, "solver": {"exact": {"time_limit": 0}}}),
]


@pytest.mark.parametrize("policy", GOOD)
def test_it_accepts_what_the_reader_accepts(policy):
    read(policy)
    VALIDATOR.validate(policy)


@pytest.mark.parametrize("policy", BAD)
def test_it_refuses_what_the_reader_refuses(policy):
    assert not VALIDATOR.is_valid(policy)
    with pytest.raises(PolicyError):
        read(policy)


def test_third_party_steps_and_plans():
    VALIDATOR.validate(of({"kind": "my.package:Step", "anything": [1]}))
    VALIDATOR.validate(of("my.package:Step"))
    VALIDATOR.validate(of(QUANTIZE, plan={"fxcompress": "0.1.0"}))
    assert not VALIDATOR.is_valid(of({"kind": "my.package", "anything": [1]}))


def keys(part, path=""):
    """Yield each key that the schema knows, with what is said about it."""
    if isinstance(part, dict):
        for name, described in part.get("properties", {}).items():
            yield f"{path}.{name}", described
        for key, value in part.items():
            yield from keys(value, f"{path}.{key}")
    elif isinstance(part, list):
        for value in part:
            yield from keys(value, path)


def test_every_key_is_described():
    found = dict(keys(schema()))
    assert any(path.endswith("percentile.q") for path in found)
    definitions = schema()["$defs"]
    for path, described in found.items():
        target = definitions[described["$ref"].rpartition("/")[2]] if "$ref" in described else {}
        assert described.get("description") or target.get("description"), path


def test_defaults_are_written_as_in_a_file():
    definitions = schema()["$defs"]
    assert definitions["WeightSpec"]["properties"]["observer"]["default"] == "minmax"
    assert definitions["QuantizeRule"]["properties"]["select"]["default"] == {}


def test_each_step_has_its_own_schema():
    references = [step["$ref"] for step in schema()["properties"]["steps"]["items"]["oneOf"] if "$ref" in step]
    for reference in references:
        step = schema()["$defs"][reference.rpartition("/")[2]]
        assert step["required"][0] == "kind"
        assert read(of({"kind": step["properties"]["kind"]["const"]} | example(step))).steps
    assert len(references) == 7


def example(step):
    rules = {
        "quantize": {"weight": {"bits": 8}},
        "prune": {"sparsity": 0.5},
        "supernet": {"kernel_size": 3},
        "split_channels": {"ratio": 0.1},
    }
    kind = step["properties"]["kind"]["const"]
    return {"rules": [rules[kind]]} if kind in rules else {"choose": {"a": "b"}} if kind == "resolve" else {}
