"""Policies with a `data` line: batches are made from batch norms where the user gives no data."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxcompress
import fxcompress.pipeline as pipeline
from fxcompress.errors import NotReadyError
from fxcompress.policies import parse
from tests.digits_net import accuracy, trained

SOME = {"zeroq": {"batches": 2, "batch_size": 16, "iterations": 40}}
EXAMPLE = torch.zeros(1, 1, 8, 8)


def policy(*tune, data=SOME, **more):
    rules = [{"weight": {"bits": 8}, "input": {"bits": 8}}]
    steps = ["fold_batch_norm", {"kind": "quantize", "rules": rules}]
    return {"version": 1, "steps": steps, "tune": list(tune), **({"data": data} if data else {}), **more}


@pytest.fixture(scope="module")
def digits():
    """Return a trained net with batch norms, some images, and labels of some that are held out."""
    return trained(3)


@pytest.fixture
def net(digits):
    return copy.deepcopy(digits[0])


@pytest.fixture
def images(digits):
    return digits[2][:200]


def ranges(model, **given):
    return fxcompress.plan(model, policy(), **given).steps[-1].ranges


def test_ranges_of_activations_are_within_a_factor_of_three_of_those_from_data(net, images):
    made, known = ranges(net, example_inputs=EXAMPLE), ranges(net, data=[images])
    assert made.keys() == known.keys()
    for tensor in made.keys() - {"input_1"}:
        for found, expected in zip(made[tensor], known[tensor], strict=True):
            assert abs(expected) / 3 <= abs(found) <= abs(expected) * 3, tensor
    low, high = made["input_1"]  # no batch norm tells of the input: it is held to mean 0 and deviation 1
    assert -5 < low < -2
    assert 2 < high < 5


def test_accuracy_without_data(net, digits):
    *_, images, labels = digits
    quantized = policy({"ada_round": {"iterations": 20}}, "bias_correction")
    quantized["steps"][1]["rules"] = [{"weight": {"bits": 4}, "input": {"bits": 8}}]
    small = fxcompress.transform(net, quantized, example_inputs=EXAMPLE)
    before = accuracy(net, images, labels)
    assert before > 0.85
    assert accuracy(small, images, labels) > before - 0.05


def test_made_once_from_the_graph_before_folding(net, monkeypatch):
    made = []

    def counted(gm, *args, **kwargs):
        made.append([module for module in gm.modules() if isinstance(module, nn.BatchNorm2d)])
        return real(gm, *args, **kwargs)

    real = pipeline.synthesize
    monkeypatch.setitem(pipeline._MAKERS, "zeroq", counted)
    fxcompress.transform(net, policy("gptq"), example_inputs=EXAMPLE)
    assert [len(norms) for norms in made] == [3]


def test_given_data_comes_first(net, images):
    given = {"data": [images], "example_inputs": EXAMPLE}
    found = fxcompress.transform(net, policy("gptq"), **given)
    expected = fxcompress.transform(net, policy("gptq", data=None), **given)
    assert torch.equal(found(images), expected(images))


@pytest.mark.parametrize(
    ("tune", "kept"),
    [
        ((), False),
        (({"bias_correction": {"statistics": "batch_norm"}},), False),
        (({"ada_round": {"iterations": 2}},), True),
    ],
)
@pytest.mark.filterwarnings("ignore:bias_correction. 1 of 4 layers")
def test_a_plan_keeps_the_line_only_where_tuning_needs_data(net, images, tune, kept):
    wanted = policy(*tune)
    decided = fxcompress.plan(net, wanted, example_inputs=EXAMPLE)
    assert (decided.data is not None) is kept
    direct = fxcompress.transform(net, wanted, example_inputs=EXAMPLE)
    again = fxcompress.transform(net, decided, example_inputs=EXAMPLE)
    assert torch.equal(again(images), direct(images))
    if not kept:
        assert torch.equal(fxcompress.transform(net, decided)(images), direct(images))


def test_loading_makes_no_data(net, images, tmp_path, monkeypatch):
    small = fxcompress.transform(net, policy("gptq"), example_inputs=EXAMPLE)
    fxcompress.save(small, tmp_path)
    monkeypatch.setitem(pipeline._MAKERS, "zeroq", None)
    assert torch.equal(fxcompress.load(tmp_path, net)(images), small(images))


def own(model, example_inputs, *, count):
    """Make batches of ones."""
    return (torch.ones_like(example_inputs) for _ in range(count))


def test_a_function_of_ones_own(net):
    decided = fxcompress.plan(net, policy(data={f"{__name__}:own": {"count": 2}}), example_inputs=EXAMPLE)
    assert decided.steps[-1].ranges["input_1"] == (1, 1)


def entropy(logits):
    """Return the loss of an output without a label."""
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()


def searching():
    wanted = policy(search={"budgets": {"size": "40%"}, "sensitivity": {"hessian_trace": {"probes": 4}}})
    wanted["steps"][1]["rules"] = [{"weight": {"bits": [2, 8]}, "input": {"bits": 8}}]
    return wanted


def test_a_search_with_a_loss_that_takes_no_label(net):
    decided = fxcompress.plan(net, searching(), example_inputs=EXAMPLE, loss=entropy)
    assert {rule.weight.bits for rule in decided.steps[1].rules} <= {2, 8}
    assert decided.data is None


def test_a_search_needs_such_a_loss(net):
    with pytest.raises(
        NotReadyError, match=r"loss\(output\) fails on batch 0: .* is \(input, label\) where the loss"
    ):
        fxcompress.plan(net, searching(), example_inputs=EXAMPLE, loss=F.cross_entropy)
    with pytest.raises(NotReadyError, match=r"search\.sensitivity hessian_trace needs loss: pass data=loader with"):
        fxcompress.plan(net, searching(), example_inputs=EXAMPLE)


def test_example_inputs_are_needed(net, images):
    with pytest.raises(NotReadyError) as caught:
        fxcompress.transform(net, policy())
    assert str(caught.value) == "data: zeroq makes data like the example inputs: pass example_inputs=..."
    text = "version: 1\nsteps: [{kind: quantize, rules: [{input: {bits: 8}}]}]\ndata:\n  zeroq: {batches: 1}\n"
    with pytest.raises(NotReadyError, match=r"^p\.yaml:4: zeroq makes data like the example inputs"):
        fxcompress.transform(net, parse(text, "p.yaml"))
    tuned = fxcompress.plan(net, policy("gptq"), data=[images])
    with pytest.raises(NotReadyError, match="data: zeroq makes data like the example inputs"):
        fxcompress.transform(net, tuned)


def test_a_model_without_batch_norm():
    with pytest.raises(
        NotReadyError, match="has no batch norm that remembers statistics, so no data can be made from"
    ):
        fxcompress.transform(nn.Conv2d(1, 1, 3), policy(), example_inputs=EXAMPLE)


@pytest.mark.parametrize("way", ["symbolic", "export", "islands"])
def test_every_way_of_capture(net, way):
    small = fxcompress.transform(net, policy("gptq"), example_inputs=EXAMPLE, capture=way)
    assert small(EXAMPLE).isfinite().all()
