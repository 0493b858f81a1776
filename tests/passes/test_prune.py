"""prune: as text, and counted."""

import pytest
import torch
from torch import nn

from fxcompress.errors import PassError
from fxcompress.graph import capture
from fxcompress.nn import Choice, Mask
from fxcompress.policies import FoldBatchNorm, Prune, Quantize


def linear(weight):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return nn.Sequential(layer)


def mask_of(gm, name="0.weight_mask"):
    module = gm.get_submodule(name)
    assert isinstance(module, Mask)
    return module.mask


@pytest.mark.parametrize("sparsity", [0.01, 0.25, 0.5, 0.77, 0.99])
def test_counts_and_magnitudes(sparsity, do):
    weight = torch.randn(10, 10, generator=torch.Generator().manual_seed(0))
    gm = do(capture(linear(weight)), Prune(rules=({"sparsity": sparsity},)))
    keep = mask_of(gm)
    zeros = round(100 * sparsity)
    assert (~keep).sum() == zeros
    assert weight[~keep].abs().max() <= weight[keep].abs().min()
    x = torch.randn(3, 10)
    torch.testing.assert_close(gm(x), x @ (weight * keep).T)


def test_of_equal_magnitudes_the_first_go(do):
    gm = do(capture(linear(torch.tensor([[1.0, -1.0], [1.0, -1.0]]))), Prune(rules=({"sparsity": 0.5},)))
    assert mask_of(gm).tolist() == [[False, False], [True, True]]


def test_no_sparsity_leaves_the_graph(do):
    gm = do(capture(linear(torch.ones(2, 2))), Prune(rules=({"sparsity": 0.0},)))
    assert not [module for module in gm.modules() if isinstance(module, Mask)]


@pytest.mark.parametrize("quantize_first", [True, False])
def test_the_mask_sits_before_the_quantizer(quantize_first, do, reads):
    steps = [Prune(rules=({"sparsity": 0.5},)), Quantize(rules=({"weight": {"bits": 4}},))]
    gm = capture(linear(torch.eye(2)))
    reads(
        gm,
        """
        input_1: input
        _0 = linear(input_1, 0.weight, None)
        return _0
        """,
    )
    reads(
        do(gm, *(reversed(steps) if quantize_first else steps)),
        """
        input_1: input
        _0_weight = 0.weight
        _0_weight_mask = Mask(50% zeros)(_0_weight)
        _0_weight_quantizer = Quantizer(int4, per channel)(_0_weight_mask)
        _0 = linear(input_1, _0_weight_quantizer, None)
        return _0
        """,
    )


@pytest.mark.parametrize("quantize_first", [True, False])
def test_open_sparsity_and_open_bits(quantize_first, do, reads):
    steps = [Prune(rules=({"sparsity": (0.0, 0.25)},)), Quantize(rules=({"weight": {"bits": (2, "float")}},))]
    gm = do(capture(linear(torch.eye(2))), *(reversed(steps) if quantize_first else steps))
    reads(
        gm,
        """
        input_1: input
        _0_weight = 0.weight
        _0_weight_mask_choice = Choice(dense | 25% sparse)(_0_weight)
        _0_weight_quantizer_choice = Choice(int2 | float)(_0_weight_mask_choice)
        _0 = linear(input_1, _0_weight_quantizer_choice, None)
        return _0
        """,
    )
    choice = gm.get_submodule("0.weight_mask_choice")
    assert isinstance(choice, Choice)
    assert choice.settings == {"dense": {"sparsity": 0.0}, "25% sparse": {"sparsity": 0.25}}
    x = torch.randn(3, 2)
    assert torch.equal(gm(x), x)  # nothing is decided: the weight is as it was


def test_a_folded_weight_is_masked_by_its_own_magnitudes(do):
    model = nn.Sequential(nn.Conv1d(1, 2, 1, bias=False), nn.BatchNorm1d(2)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 2.0]).view(2, 1, 1))
        model[1].weight.copy_(torch.tensor([10.0, 1.0]))
    gm = do(capture(model), FoldBatchNorm(), Prune(rules=({"sparsity": 0.5},)))
    assert mask_of(gm).flatten().tolist() == [True, False]


def test_a_tied_weight_has_one_mask(do, reads, tied):
    reads(
        do(capture(tied), Prune(rules=({"sparsity": 0.5},))),
        """
        x: input
        a_weight = a.weight
        a_weight_mask = Mask(50% zeros)(a_weight)
        a = linear(x, a_weight_mask, None)
        a_1 = linear(a, a_weight_mask, None)
        b_weight = b.weight
        a_weight_mask_1 = Mask(50% zeros)(b_weight)
        b = linear(a_1, a_weight_mask_1, None)
        return b
        """,
    )


def test_rules_that_disagree_on_a_tied_weight(do, tied):
    rules = ({"sparsity": 0.5}, {"select": {"names": ["b"]}, "sparsity": 0.25})
    message = (
        "weight 'a.weight' is shared by 'a' and 'b', but their rules disagree: prune rule 1 says sparsity 0.5, "
        "prune rule 2 says 0.25; state one for both"
    )
    with pytest.raises(PassError, match=message):
        do(capture(tied), Prune(rules=rules))


@pytest.mark.parametrize("second", [0.75, (0.0, 0.75)])
def test_a_second_step_on_the_same_weight(second, do):
    message = (
        r"prune rule 1: tensor '_0_weight' already has Mask\(50% zeros\) from an earlier step; state it in one step"
    )
    with pytest.raises(PassError, match=message):
        do(capture(linear(torch.eye(2))), *(Prune(rules=({"sparsity": share},)) for share in (0.5, second)))


def test_an_operator_without_a_weight(do):
    class Add(nn.Module):
        def forward(self, x):
            return x + x

    with pytest.raises(PassError, match=r"prune rule 1: 'add' \(add\) has no weight to prune"):
        do(capture(Add()), Prune(rules=({"select": {"ops": ["add"]}, "sparsity": 0.5},)))
