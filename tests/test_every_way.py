"""One policy on every kind of capture: passes, calibration, sensitivity, the solver's plan, saving and loading."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxcompress
from fxcompress.errors import CompressError
from fxcompress.graph import capture, verify
from fxcompress.measure.costs import rest_size
from fxcompress.policies import Plan

WAYS = ("symbolic", "export", "islands")
POLICY = {
    "version": 1,
    "steps": [
        {"kind": "fold_batch_norm"},
        {
            "kind": "quantize",
            "rules": [
                {"weight": {"bits": [2, 4, 8], "per": "channel"}, "input": {"bits": 8}},
                {"select": {"names": ["stem", "head"]}, "weight": {"bits": 8}},
            ],
        },
        {"kind": "prune", "rules": [{"select": {"names": ["blocks.1.*"]}, "sparsity": [0.0, 0.5]}]},
    ],
    "search": {"sensitivity": "hessian_trace", "budgets": {"size": "24%", "bops": "20%"}},
}


class Block(nn.Module):
    """A residual block that does something else in train mode in three places."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x):
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(F.dropout(out, 0.1, self.training))) + x)


class Net(nn.Module):
    """A small network whose own code is short: all of it is in modules."""

    def __init__(self):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 8, 3), nn.Sequential(Block(), Block())
        self.pool, self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.pool(self.blocks(self.stem(x))))


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(0)
    model, x = Net(), torch.randn(2, 3, 10, 10)
    data = [(torch.randn(8, 3, 10, 10), torch.randint(0, 4, (8,))) for _ in range(2)]
    plans = {
        way: fxcompress.plan(model, POLICY, example_inputs=x, data=data, loss=F.cross_entropy, capture=way)
        for way in WAYS
    }
    return model, x, data, plans


def test_the_plan_says_how_the_model_was_captured(made):
    assert {way: plan.capture for way, plan in made[3].items()} == {way: way for way in WAYS}


@pytest.mark.parametrize("way", WAYS[1:])
def test_the_plans_are_the_same_where_both_see_the_layer(made, way):
    plans = made[3]
    other = {layer.name: layer for layer in plans[way].plan.layers}
    for layer in plans["symbolic"].plan.layers:
        for field, value in layer.model_dump().items():
            found = getattr(other[layer.name], field)
            assert found == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value)
    assert plans[way].plan.budgets == plans["symbolic"].plan.budgets
    assert plans[way].plan.matched.keys() == plans["symbolic"].plan.matched.keys()


@pytest.mark.parametrize("way", WAYS[1:])
def test_the_compressed_models_compute_the_same(made, way):
    model, x, data, plans = made
    both = [fxcompress.transform(model, plans[one], example_inputs=x, data=data).eval() for one in ("symbolic", way)]
    y = torch.randn(5, 3, 12, 12)
    for one in both:
        verify(one)
    if way == "export":
        y = torch.randn(5, 3, 10, 10)
        assert torch.equal(both[0](y), both[1](y))
    else:  # the additions between regions have no quantizers
        names = [{name for name, _ in one.named_modules() if "weight_quantizer" in name} for one in both]
        assert names[0] == names[1]
        assert (both[0](y) - both[1](y)).abs().max() < 0.1 * both[0](y).abs().max()


@pytest.mark.parametrize("way", WAYS)
def test_saving_and_loading(made, way, tmp_path):
    model, x, data, plans = made
    small = fxcompress.transform(model, plans[way], example_inputs=x, data=data)
    fxcompress.save(small, tmp_path)
    assert Plan.model_validate(plans[way].model_dump(exclude_unset=True)).capture == way
    loaded = fxcompress.load(tmp_path, Net(), example_inputs=x)
    assert torch.equal(loaded.eval()(x), small.eval()(x))
    state = loaded.state_dict()
    assert all(torch.equal(state[name], value) for name, value in small.state_dict().items())


@pytest.mark.parametrize("way", WAYS)
def test_training_goes_on(made, way):
    model, x, data, plans = made
    small = fxcompress.transform(model, plans[way], example_inputs=x, data=data).train()
    optimizer = torch.optim.SGD(small.parameters(), 0.05)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = F.cross_entropy(small(data[0][0]), data[0][1])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("way", WAYS[1:])
def test_loading_without_inputs_that_the_way_needs(made, way, tmp_path):
    model, x, data, plans = made
    fxcompress.save(fxcompress.transform(model, plans[way], example_inputs=x, data=data), tmp_path)
    with pytest.raises(CompressError, match=f"was captured by {way}, which runs the model: pass example_inputs"):
        fxcompress.load(tmp_path, Net())


def test_what_python_reads_beside_islands_takes_room():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.norm, self.table = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Parameter(torch.ones(4, 6))

        def forward(self, x):
            return self.norm(self.fc(x)) @ self.table

    sizes = [rest_size(capture(Tied().eval(), torch.ones(2, 4), way=way)) for way in ("symbolic", "islands")]
    assert sizes == [4 * (4 * 4 + 4 * 6)] * 2  # four vectors of the norm, and the table
