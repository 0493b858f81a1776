"""Putting a value where the quantizer reads it: through batch norm and masks, and only where one parameter serves."""

import pytest
import torch
from torch import nn

from fxcompress import transform
from fxcompress.graph.operators.calls import operator_of
from fxcompress.tune.weights import add_to_bias, float_weight, store, tunables


def test_what_is_stored_enters_the_quantizer(net, images, tuned):
    gm = transform(net, tuned(), data=images)
    for one in tunables(gm):
        value = torch.randn(float_weight(gm, one).shape)
        store(gm, one, value)
        torch.testing.assert_close(float_weight(gm, one), value)


def test_codes_survive_the_way_through_batch_norm(net, images, tuned):
    gm = transform(net, tuned(weight=8), data=images)
    one = tunables(gm)[0]
    assert one.layer.name == "stem"
    on_grid = one.quantizer(torch.randn(float_weight(gm, one).shape))
    store(gm, one, on_grid)
    assert torch.equal(one.quantizer(float_weight(gm, one)), on_grid)


def test_masked_weights_keep_what_they_were():
    rules = {"prune": [{"sparsity": 0.5}], "quantize": [{"weight": {"bits": 4}}]}
    policy = {"version": 1, "steps": [{"kind": kind, "rules": said} for kind, said in rules.items()]}
    gm = transform(nn.Linear(8, 8), policy)
    (one,) = tunables(gm)
    before = gm.weight.detach().clone()
    mask = float_weight(gm, one) != 0
    store(gm, one, torch.ones(8, 8))
    assert torch.equal(gm.weight[~mask], before[~mask])
    assert (gm.weight[mask] == 1).all()
    assert mask.sum() == 32


def test_a_weight_with_two_norms_is_left_out():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.one, self.two = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)

        def forward(self, x):
            return self.two(self.layer(self.one(self.layer(x))))

    policy = {"version": 1, "steps": ["fold_batch_norm", {"kind": "quantize", "rules": [{"weight": {"bits": 4}}]}]}
    assert tunables(transform(Twice().eval(), policy)) == []


@pytest.mark.parametrize("affine", [True, False])
def test_a_shift_of_the_bias_moves_the_output(affine):
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, affine=affine)).eval()
    with torch.no_grad():
        model[1].running_var.uniform_(0.5, 2)
    gm = transform(model, {"version": 1, "steps": ["fold_batch_norm"]})
    x, shift = torch.randn(2, 2, 4, 4), torch.tensor([1.0, -2.0, 0.5])
    before = gm(x)
    (call,) = [node for node in gm.graph.nodes if node.name == "_0"]
    add_to_bias(gm, operator_of(call), call, shift)
    torch.testing.assert_close(gm(x), before + shift.view(1, 3, 1, 1))
