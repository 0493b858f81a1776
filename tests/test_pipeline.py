"""transform and plan, end to end: what the user gives, what comes back, and what stays as it was."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fxcompress.errors import CaptureError, CompressError, NotReadyError, PassError, PolicyError
from fxcompress.nn import Choice, Mask, Quantizer
from fxcompress.pipeline import plan, transform
from fxcompress.policies import Plan, dump, parse


class Net(nn.Module):
    """Depthwise and plain convolutions with norms, a residual, dropout, and a classifier."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(4)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)) + x)
        return self.head(self.drop(x.mean((2, 3))))


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        for _ in range(20):  # gives the norms their statistics
            net(torch.randn(16, 1, 6, 6))
    return net.eval()


@pytest.fixture
def data(model):
    generator = torch.Generator().manual_seed(0)
    x = [torch.randn(8, 1, 6, 6, generator=generator) for _ in range(3)]
    with torch.no_grad():
        return [(one, model(one).argmax(1)) for one in x]


QUANTIZE = {"select": {"ops": ["conv*", "linear", "add"]}, "weight": {"bits": [2, 4, 8]}, "input": {"bits": [4, 8]}}
MIXED = {
    "version": 1,
    "steps": [
        "fold_batch_norm",
        {"kind": "quantize", "rules": [QUANTIZE, {"select": {"names": ["conv1", "head"]}, "weight": {"bits": 8}}]},
        {"kind": "prune", "rules": [{"select": {"names": ["conv*"]}, "sparsity": [0.0, 0.5]}]},
    ],
    "search": {"budgets": {"size": "60%", "bops": "5%"}},
}


def same_state(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("preset", ["w8", "w4", "w8a8", "w4a8"])
def test_presets(preset, model, data):
    gm = transform(model, preset, data=data, loss=F.cross_entropy)
    assert any(isinstance(module, Quantizer) for module in gm.modules())
    assert not any(isinstance(module, Choice) for module in gm.modules())
    x, _ = data[0]
    assert gm(x).shape == (8, 3)


def test_eight_bits_stay_close(model, data):
    x, _ = data[0]
    expected, found = model(x), transform(model, "w8a8", data=data)(x)
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
    assert not torch.equal(found, expected)


def test_the_given_model_stays_as_it_was(model, data):
    model.train()
    before = copy.deepcopy(model.state_dict())
    transform(model, MIXED, data=data, loss=F.cross_entropy)
    assert same_state(before, model.state_dict())
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(isinstance(module, Quantizer | Mask) for module in model.modules())


def test_original_keys_and_values_are_kept(model, data):
    gm = transform(model, MIXED, data=data, loss=F.cross_entropy)
    original = model.state_dict()
    assert same_state(original, {name: value for name, value in gm.state_dict().items() if name in original})
    assert {name.split(".")[-1] for name in gm.state_dict().keys() - original.keys()} <= {
        "scale",
        "zero_point",
        "mask",
    }


def test_a_plan_is_applied_without_data(model, data):
    decided = plan(model, MIXED, data=data, loss=F.cross_entropy)
    direct = transform(model, MIXED, data=data, loss=F.cross_entropy)
    read_back = parse(dump(decided), "plan.yaml")
    for one in (decided, read_back):
        again = transform(model, one)
        assert same_state(direct.state_dict(), again.state_dict())
        assert torch.equal(direct(data[0][0]), again(data[0][0]))
    assert isinstance(read_back, Plan)
    assert plan(model, read_back) is read_back


def test_a_plan_from_a_file(tmp_path, model, data):
    path = tmp_path / "net.plan.yaml"
    path.write_text(dump(plan(model, "w8a8", data=data)))
    assert torch.equal(transform(model, path)(data[0][0]), transform(model, "w8a8", data=data)(data[0][0]))


def kinds_of_data(data):
    x, y = (torch.cat(part) for part in zip(*data, strict=True))
    return {
        "loader": DataLoader(TensorDataset(x, y), batch_size=8),
        "generator": (batch for batch in data),
        "dicts": [{"x": one, "label": label} for one, label in data],
    }


@pytest.mark.parametrize("kind", ["loader", "generator", "dicts"])
def test_any_iterable_gives_the_same(kind, model, data):
    expected = dump(plan(model, MIXED, data=data, loss=F.cross_entropy))
    assert dump(plan(model, MIXED, data=kinds_of_data(data)[kind], loss=F.cross_entropy)) == expected


def test_it_trains(model, data):
    gm = transform(model, MIXED, data=data, loss=F.cross_entropy).train()
    optimizer = torch.optim.SGD(gm.parameters(), lr=0.05)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = sum(F.cross_entropy(gm(x), y) for x, y in data)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[5:]) < losses[0]
    assert gm.get_parameter("bn1.weight").grad.abs().sum() > 0


def test_train_mode_is_kept(model, data):
    assert transform(model.train(), "w8a8", data=data).training
    assert not transform(model.eval(), "w8a8", data=data).training


def test_a_weight_only_policy_needs_nothing(model):
    gm = transform(model, "w8")
    assert torch.allclose(gm(torch.ones(1, 1, 6, 6)), model(torch.ones(1, 1, 6, 6)), atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_float_types(dtype, model, data):
    typed = [(x.to(dtype), y) for x, y in data]
    gm = transform(model.to(dtype), MIXED, data=typed, loss=F.cross_entropy)
    assert gm(typed[0][0]).dtype is dtype


def test_missing_data_names_the_step_that_needs_it(model, data):
    message = r"step quantize needs data to calibrate 3 inputs .*: pass data=loader, any iterable of batches"
    with pytest.raises(NotReadyError, match=message):
        transform(
            model,
            {
                "version": 1,
                "steps": [
                    "fold_batch_norm",
                    {"kind": "quantize", "rules": [{"weight": {"bits": 8}, "input": {"bits": 8}}]},
                ],
            },
        )
    with pytest.raises(NotReadyError, match=r"search\.sensitivity hessian_trace needs loss: pass data=loader"):
        transform(model, MIXED, data=data)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            {"select": {"names": ["convv1"]}, "weight": {"bits": 8}},
            r"'convv1' matches no layer \(did you mean 'conv1'\?\)",
        ),
        ({"select": {"ops": ["embedding"]}, "weight": {"bits": 8}}, "matches no layer of kind embedding"),
        ({"select": {"ops": ["conv4d"]}, "weight": {"bits": 8}}, "no operator kind .*'conv4d'"),
    ],
)
def test_a_rule_that_matches_nothing(rule, message, model):
    with pytest.raises(PolicyError, match=message):
        transform(model, {"version": 1, "steps": [{"kind": "quantize", "rules": [rule]}]})


def test_a_model_in_which_nothing_matches():
    with pytest.raises(PolicyError, match="matches no layer"):
        transform(nn.Sequential(nn.ReLU()), "w8")


def test_rules_that_disagree_on_a_shared_tensor(model, data):
    rules = [QUANTIZE, {"select": {"names": ["conv2"]}, "input": {"bits": 8}}]
    message = (
        "tensor 'relu' is shared by 'conv2' and 'add', but their rules disagree: quantize rule 2 says .*rule 1 says"
    )
    with pytest.raises(PassError, match=message):
        transform(model, MIXED | {"steps": [{"kind": "quantize", "rules": rules}]}, data=data, loss=F.cross_entropy)


def test_every_error_is_of_the_family(model):
    for policy in ("w9", {"version": 1, "steps": []}, {"version": 1, "steps": [{"kind": "quantise"}]}):
        with pytest.raises(CompressError):
            transform(model, policy)


class Toggling(nn.Module):
    """Does something else each time it runs, so that a graph of it cannot be right."""

    def __init__(self):
        super().__init__()
        self.fc, self.calls = nn.Linear(2, 2), itertools.count(1)

    def forward(self, x):
        return self.fc(x) * next(self.calls)


def test_the_capture_is_checked_on_data_too():
    with pytest.raises(CaptureError, match="Toggling does not compute the same when it is run again"):
        transform(Toggling(), "w8a8", data=[torch.randn(4, 2)])


def test_the_place_of_the_plan_is_not_taken():
    net = nn.Sequential()
    net.add_module("fxcompress_plan", nn.Linear(2, 2))
    with pytest.raises(CompressError, match="the model has a part named 'fxcompress_plan', where the plan is kept"):
        transform(net, "w8")


def test_what_is_missing_is_said_at_once(model):
    policy = {
        "version": 1,
        "steps": [{"kind": "quantize", "rules": [{"weight": {"bits": [4, 8]}}]}],
        "search": {"budgets": {"bops": "20%"}},
    }
    with pytest.raises(
        NotReadyError, match=r"search.sensitivity hessian_trace needs data and loss: pass data=loader"
    ):
        plan(model, policy)


def test_bad_data_is_named(model, data):
    unlabelled = [x for x, _ in data]
    with pytest.raises(
        NotReadyError, match=r"loss\(output\) fails on batch 0: .*; a batch of data is \(input, label\)"
    ):
        transform(model, MIXED, data=unlabelled, loss=F.cross_entropy)
    with pytest.raises(NotReadyError, match="data is an iterable of batches, such as a list or a DataLoader, not 5"):
        transform(model, "w8a8", data=5)
    with pytest.raises(NotReadyError, match="calibration batch 1 does not run through the model"):
        transform(model, "w8a8", data=[data[0][0], torch.randn(2, 7)])


def test_an_open_supernet_is_reported_as_it_runs(model):
    steps = [{"kind": "supernet", "rules": [{"select": {"names": ["conv1"]}, "kernel_size": [3, 5]}]}]
    x = torch.randn(1, 1, 6, 6)
    record = plan(model, {"version": 1, "steps": steps}, example_inputs=x).plan
    assert record.totals.size == record.totals.float_size
    assert record.totals.bops == record.totals.float_bops
    assert "conv1" in [layer.name for layer in record.layers]


def test_inputs_that_an_operator_lacks_need_no_decision():
    net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3))
    policy = {
        "version": 1,
        "steps": [{"kind": "quantize", "rules": [{"weight": {"bits": [4, 8]}, "input": {"bits": [4, 8]}}]}],
        "search": {"budgets": {"size": "60%"}},
    }
    batch = (torch.arange(9), torch.zeros(9, dtype=torch.long))
    found = plan(net, policy, data=[batch], loss=F.cross_entropy)
    embedding, linear = [layer.decision for layer in found.plan.layers]
    assert "A" not in embedding
    assert "A" in linear


def test_the_same_policy_elsewhere_gives_the_same_plan(model, data, tmp_path):
    written = []
    for folder in ("a", "b"):
        file = tmp_path / folder / "policy.yaml"
        parse("version: 1\nsteps: [{kind: quantize, rules: [{weight: {bits: 8}}]}]", "x").save(file)
        written.append(dump(plan(model, file, example_inputs=data[0][0])))
    assert written[0] == written[1]
