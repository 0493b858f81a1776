"""Putting a value where the quantizer reads it: through batch norm and masks, and only where one parameter serves."""

import pytest
import torch
from torch import nn

from fxcompress import transform
from fxcompress.graph.operators.calls import operator_of
from fxcompress.tune.weights import add_to_bias, float_weight, quantized_weights, store


def test_what_is_stored_enters_the_quantizer(net, images, tuned):
    gm = transform(net, tuned(), data=images)
    for one in quantized_weights(gm):
        value = torch.randn(float_weight(gm, one).shape)
        store(gm, one, value)
        torch.testing.assert_close(float_weight(gm, one), value)


def test_codes_survive_the_way_through_batch_norm(net, images, tuned):
    gm = transform(net, tuned(weight=8), data=images)
    one = quantized_weights(gm)[0]
    assert one.layer.name == "stem"
    on_grid = one.quantizer(torch.randn(float_weight(gm, one).shape))
    store(gm, one, on_grid)
    assert torch.equal(one.quantizer(float_weight(gm, one)), on_grid)


def test_masked_weights_keep_what_they_were():
    rules = {"prune": [{"sparsity": 0.5}], "quantize": [{"weight": {"bits": 4}}]}
    policy = {"version": 1, "steps": [{"kind": kind, "rules": said} for kind, said in rules.items()]}
    gm = transform(nn.Linear(8, 8), policy)
    (one,) = quantized_weights(gm)
    before = gm.weight.detach().clone()
    mask = float_weight(gm, one) != 0
    store(gm, one, torch.ones(8, 8))
    assert torch.equal(gm.weight[~mask], before[~mask])
    assert (gm.weight[mask] == 1).all()
    assert mask.sum() == 32


class Shared(nn.Module):
    """A layer that is called twice, each time with a norm of its own, and one whose weight an embedding reads."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
        self.head.weight = self.embedding.weight
        self.layer, self.one, self.two = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)
        self.single = nn.Linear(4, 4)
        for norm in (self.one, self.two):
            nn.init.uniform_(norm.weight, 0.5, 2)

    def forward(self, x):
        x = self.two(self.layer(self.one(self.layer(self.embedding(x)))))
        return self.head(self.single(x))


@pytest.mark.parametrize("rule", [{}, {"select": {"ops": ["linear"]}}])
def test_a_parameter_that_serves_something_else_is_not_rounded(rule):
    """Without an own rule the embedding reads the parameter as it is, with one through the same quantizer."""
    steps = ["fold_batch_norm", {"kind": "quantize", "rules": [rule | {"weight": {"bits": 4}}]}]
    obstacles = {
        "head": "the call 'embedding' reads its parameter for something else",
        "layer": "the call 'layer' reads its parameter for something else",
        "single": "",
    }
    data = list(torch.randint(9, (3, 16), generator=torch.Generator().manual_seed(0)))
    gm = transform(Shared().eval(), {"version": 1, "steps": steps}, data=data)
    assert {one.layer.name.replace("embedding", "head"): one.obstacle for one in quantized_weights(gm)} == obstacles
    for step in ("gptq", {"ada_round": {"iterations": 20}}, {"block_reconstruction": {"iterations": 20}}):
        policy = {"version": 1, "steps": steps, "tune": [step]}
        with pytest.warns(
            UserWarning, match="2 of 3 quantized weights cannot be rounded .*: the call '.*' reads its"
        ):
            tuned = transform(Shared().eval(), policy, data=data)
        for name, value in gm.state_dict().items():
            assert torch.equal(tuned.state_dict()[name], value) == (name != "single.weight"), name


def test_a_widened_weight_is_not_rounded():
    model, data = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), [torch.randn(16, 8)]
    split = {"kind": "split_channels", "rules": [{"select": {"names": ["0"]}, "ratio": 0.1}]}
    steps = [split, {"kind": "quantize", "rules": [{"weight": {"bits": 3}}]}]
    message = (
        r"gptq: 1 of 2 quantized weights cannot be rounded \(the first is '0'\): '_0_weight_split' changes its "
        "parameter before it is quantized"
    )
    with pytest.warns(UserWarning, match=message):
        gm = transform(model, {"version": 1, "steps": steps, "tune": ["gptq"]}, data=data)
    assert torch.equal(gm.get_parameter("0.weight"), model[0].weight)
    assert not torch.equal(gm.get_parameter("1.weight"), model[1].weight)


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
