"""What a target adds to the quantizers of the rules, on a net with all that joins: sums, concatenations, averages."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxcompress import graph, load, plan, save, transform
from fxcompress.errors import PolicyError
from fxcompress.policies import parse


class Joining(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.c, self.d = nn.Conv2d(4, 4, 1), nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.a(x)), 2)
        x = F.relu(x + self.b(x))
        x = F.relu(self.d(torch.cat([self.c(x), x], 1)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Joining().eval()


@pytest.fixture
def data():
    return list(torch.randn(3, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))


def policy(target, rules=({"weight": {"bits": 8}, "input": {"bits": 8}},), **more):
    return {"version": 1, "target": target, "steps": [{"kind": "quantize", "rules": list(rules)}], **more}


def flow(gm):
    """Return which tensor, or quantizer's tensor, each operator reads: 'b <- relu, q(x)'."""
    lines = []
    for node in gm.graph.nodes:
        if node.op == "call_function":
            read = [one for one in node.all_input_nodes if not graph.edit.is_constant(gm, one)]
            names = ((one.op, str(one.target).removesuffix("_quantizer"), one.name) for one in read)
            shown = ", ".join(f"q({tensor})" if op == "call_module" else name for op, tensor, name in names)
            lines.append(f"{node.name} <- {shown}")
    return lines


def test_without_a_target_the_rules_are_all(model, data):
    expected = [
        "a <- q(x)",
        "relu <- a",
        "max_pool2d <- relu",
        "b <- q(max_pool2d)",
        "add <- max_pool2d, b",
        "relu_1 <- add",
        "c <- q(relu_1)",
        "cat <- c, relu_1",
        "d <- q(cat)",
        "relu_2 <- d",
        "adaptive_avg_pool2d <- relu_2",
        "flatten <- adaptive_avg_pool2d",
        "head <- q(flatten)",
    ]
    assert flow(transform(model, policy("none"), data=data)) == expected
    without = {"version": 1, "steps": policy("none")["steps"]}
    assert flow(transform(model, without, data=data)) == expected


def test_onnxruntime_needs_results_and_all_that_joins(model, data):
    """The pool hands the scale of what enters it on; the head's float result stays."""
    assert flow(transform(model, policy("onnxruntime"), data=data)) == [
        "a <- q(x)",
        "relu <- a",
        "max_pool2d <- q(relu)",
        "b <- q(relu)",
        "add <- q(relu), q(b)",
        "relu_1 <- add",
        "c <- q(relu_1)",
        "cat <- q(c), q(relu_1)",
        "d <- q(cat)",
        "relu_2 <- d",
        "adaptive_avg_pool2d <- q(relu_2)",
        "flatten <- q(adaptive_avg_pool2d)",
        "head <- q(adaptive_avg_pool2d)",
    ]


def test_openvino_needs_one_scale_for_what_is_concatenated(model, data):
    assert flow(transform(model, policy("openvino"), data=data)) == [
        "a <- q(x)",
        "relu <- a",
        "max_pool2d <- q(relu)",
        "b <- q(relu)",
        "add <- q(relu), q(b)",
        "relu_1 <- add",
        "c <- q(c)",
        "cat <- q(c), q(c)",
        "d <- q(cat)",
        "relu_2 <- d",
        "adaptive_avg_pool2d <- q(relu_2)",
        "flatten <- q(adaptive_avg_pool2d)",
        "head <- q(adaptive_avg_pool2d)",
    ]


def test_a_shared_scale_holds_all_that_shares_it(model, data):
    gm = transform(model, policy("openvino"), data=data)
    model.get_submodule("d").register_forward_pre_hook(lambda module, args: joined.append(args[0]))
    joined = []
    with torch.no_grad():
        for x in data:
            model(x)
    low, high = torch.aminmax(torch.cat(joined))
    torch.testing.assert_close(gm.get_submodule("c_quantizer").scale, (high - low.clamp(max=0)) / 255)


def test_a_plan_with_a_target_needs_no_data(model, data, tmp_path):
    small = transform(model, policy("onnxruntime"), data=data)
    decided = plan(model, policy("onnxruntime"), data=data)
    assert torch.equal(transform(model, decided)(data[0]), small(data[0]))
    save(small, tmp_path)
    assert torch.equal(load(tmp_path, model)(data[0]), small(data[0]))
    assert decided.target == "onnxruntime"


def test_what_is_added_has_8_bits_where_rules_have_fewer_or_are_open(model, data):
    fewer = transform(model, policy("onnxruntime", [{"weight": {"bits": 4}, "input": {"bits": 4}}]), data=data)
    assert [fewer.get_submodule(f"{name}_quantizer").bits for name in ("x", "cat", "b", "c")] == [4, 4, 8, 8]
    rules = [{"weight": {"bits": 8}, "input": {"bits": [4, 8]}}]
    search = {"budgets": {"bops": "4%"}}
    labelled = [(x, torch.tensor([0, 1])) for x in data]
    found = transform(model, policy("onnxruntime", rules, search=search), data=labelled, loss=F.cross_entropy)
    assert found.get_submodule("b_quantizer").bits == 8


def test_a_rule_that_says_float_or_dynamic_stands(model, data):
    said = {"select": {"ops": ["conv2d"], "names": ["c"]}, "input": {"bits": "float"}}
    gm = transform(model, policy("onnxruntime", [*policy("none")["steps"][0]["rules"], said]), data=data)
    assert "c <- relu_1" in flow(gm)
    dynamic = policy("onnxruntime", [{"weight": {"bits": 8}, "input": {"bits": 8, "dynamic": True}}])
    assert "add <- max_pool2d, b" in flow(transform(model, dynamic, data=data))


@pytest.mark.parametrize("way", ["symbolic", "export"])
def test_it_is_the_same_however_the_model_was_captured(model, data, way):
    gm = transform(model, policy("onnxruntime"), data=data, capture=way)
    assert "cat <- q(c), q(relu_1)" in flow(gm)


@pytest.mark.parametrize(
    ("target", "rule", "said"),
    [
        (
            "openvino",
            {"weight": {"bits": 8}, "input": {"bits": 4}},
            "quantize rule 1: openvino runs inputs of 8 bits in integers, not 4 as for 'a'; write one of these, or "
            "'target: none'",
        ),
        (
            "openvino",
            {"weight": {"bits": 3}, "input": {"bits": 8}},
            "quantize rule 1: openvino runs weights of 4, 8 bits in integers, not 3 as for 'a'; write one of these, "
            "or 'target: none'",
        ),
        (
            "onnxruntime",
            {"weight": {"bits": 8}, "input": {"bits": 16}},
            "quantize rule 1: onnxruntime runs inputs of 2, 3, 4, 5, 6, 7, 8 bits in integers, not 16 as for 'a'; "
            "write one of these, or 'target: none'",
        ),
    ],
)
def test_bits_that_the_target_cannot_run_are_refused(model, data, target, rule, said):
    with pytest.raises(PolicyError) as error:
        transform(model, policy(target, [rule]), data=data)
    assert str(error.value) == said


def test_weights_alone_may_have_any_bits(model, data):
    transform(model, policy("openvino", [{"weight": {"bits": 3}}]), data=data)


def test_a_wrong_target_is_refused_by_name():
    with pytest.raises(PolicyError, match=r"p.yaml:2: target: should be .*'none'.* not 'onnxruntme'"):
        parse("version: 1\ntarget: onnxruntme\nsteps: [fold_batch_norm]", "p.yaml")


class Concatenating(nn.Module):
    """Concatenates tensors that share a quantizer with others already."""

    def __init__(self, kind):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.of_two, self.of_three = nn.Conv2d(6, 3, 1), nn.Conv2d(9, 3, 1)
        self.kind = kind

    def forward(self, x):
        a, b, c = F.relu(self.a(x)), F.relu(self.b(x)), F.relu(self.c(x))
        if self.kind == "a pool's result":
            return self.of_two(torch.cat([F.max_pool2d(a, 3, 1, 1), F.relu(self.b(a))], 1))
        first = self.of_two(torch.cat([a, b], 1))
        if self.kind == "a chain":
            return first + self.of_two(torch.cat([b, c], 1))
        return first + self.of_three(torch.cat([b, c, a], 1))


@pytest.mark.parametrize("kind", ["a pool's result", "a chain", "dense"])
def test_what_is_concatenated_shares_with_what_shared_before(kind, data):
    gm = transform(Concatenating(kind).eval(), policy("openvino"), data=data)
    joins = [node for node in gm.graph.nodes if node.name.startswith("cat") and node.op == "call_function"]
    assert len(joins) == (1 if kind == "a pool's result" else 2)
    for node in joins:
        assert len({str(part.target) for part in node.args[0]}) == 1
        assert str(node.args[0][0].target).endswith("_quantizer")
