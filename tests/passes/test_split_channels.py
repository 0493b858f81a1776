"""split_channels: as text, the function stays, ranges fall, and where quantizers and masks sit."""

import re

import pytest
import torch
from torch import nn

import fxcompress
from fxcompress.errors import PassError
from fxcompress.graph import capture
from fxcompress.measure.calibrate import calibrate
from fxcompress.nn.channel_split import ChannelSplit
from fxcompress.policies import FoldBatchNorm, Prune, Quantize, SplitChannels


def split(*rules):
    return SplitChannels(rules=rules or ({"ratio": 0.3},))


def with_outliers(model, seed=0):
    """Return the model in eval mode with large weights in a few places."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            nn.init.normal_(module.weight)
            module.weight.data.view(-1)[torch.randperm(module.weight.numel())[:2]] *= 8
    return model.eval()


def test_as_text(do, reads):
    net = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 4, 1))
    gm = do(capture(with_outliers(net)), FoldBatchNorm(), split())
    do(gm, Prune(rules=({"sparsity": 0.5},)), Quantize(rules=({"weight": {"bits": 4}, "input": {"bits": 8}},)))
    reads(
        gm,
        """
        input_1: input
        _0_weight_folded = folded_weight(0.weight, 1.weight, 1.running_var, 1e-05, 0)
        _0_weight_mask = Mask(50% zeros)(_0_weight_folded)
        _0_weight_split = ChannelSplit(1 channels added)(_0_weight_mask)
        _0_weight_quantizer = Quantizer(int4, per channel)(_0_weight_split)
        _0_bias_folded = folded_bias(None, 1.weight, 1.bias, 1.running_mean, 1.running_var, 1e-05)
        _0_input = copied_channels(input_1, 0.weight_split.added, -3)
        _0_input_quantizer = Quantizer(uint8, per tensor)(_0_input)
        _0 = conv2d(_0_input_quantizer, _0_weight_quantizer, _0_bias_folded, (1, 1), (0, 0), (1, 1), 1)
        _2 = relu(_0)
        _3_weight = 3.weight
        _3_weight_mask = Mask(50% zeros)(_3_weight)
        _3_weight_split = ChannelSplit(1 channels added)(_3_weight_mask)
        _3_weight_quantizer = Quantizer(int4, per channel)(_3_weight_split)
        _3_input = copied_channels(_2, 3.weight_split.added, -3)
        _3_input_quantizer = Quantizer(uint8, per tensor)(_3_input)
        _3 = conv2d(_3_input_quantizer, _3_weight_quantizer, 3.bias, (1, 1), (0, 0), (1, 1), 1)
        return _3
        """,
    )


@pytest.mark.parametrize(
    ("layer", "shape", "added"),
    [
        (nn.Conv1d(8, 6, 3), (2, 8, 5), 2),
        (nn.Conv2d(8, 6, 3, stride=2, padding=1), (2, 8, 7, 7), 2),
        (nn.Conv3d(4, 3, 2), (2, 4, 3, 3, 3), 1),
        (nn.Conv2d(8, 6, 3), (8, 7, 7), 2),  # one image without a batch
        (nn.ConvTranspose2d(8, 6, 3), (2, 8, 4, 4), 2),
        (nn.Linear(100, 4), (3, 5, 100), 25),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_function_stays_and_the_largest_weight_falls(layer, shape, added, do):
    model = with_outliers(nn.Sequential(layer)).double()
    x = torch.randn(shape, dtype=torch.float64)
    gm = do(capture(model, x), split({"ratio": 0.25}))
    torch.testing.assert_close(gm(x), model(x), rtol=1e-10, atol=1e-10)
    module = gm.get_submodule("0.weight_split")
    assert isinstance(module, ChannelSplit)
    assert len(module.added) == added
    assert module(model[0].weight).abs().max() < 0.8 * model[0].weight.abs().max()


@pytest.mark.parametrize("way", ["symbolic", "export", "islands"])
def test_every_way_of_capture(way, do):
    model = with_outliers(nn.Sequential(nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)))
    x = torch.randn(2, 8, 7, 7)
    gm = do(capture(model, x, way=way), split())
    assert [name for name, module in gm.named_modules() if isinstance(module, ChannelSplit)] == [
        "0.weight_split",
        "2.weight_split",
    ]
    torch.testing.assert_close(gm(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 5, 6])
def test_quantized_weights_lose_less(bits, do):
    model = with_outliers(nn.Sequential(nn.Conv2d(32, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)))
    x = torch.randn(4, 32, 9, 9)

    def error(*steps):
        rule = {"weight": {"bits": bits, "per": "tensor"}}
        gm = do(capture(model), *steps, Quantize(rules=(rule,)))
        calibrate(gm, None)
        for module in (module for module in gm.modules() if isinstance(module, ChannelSplit)):
            name = next(name for name, one in gm.named_modules() if one is module).removesuffix("_split")
            module.set_step(gm.get_submodule(f"{name}_quantizer").scale)
        return (gm(x) - model(x)).square().mean().item()

    assert error(split({"ratio": 0.1})) < error() / 2


def test_a_folded_weight_is_split_as_it_is_folded(do):
    model = with_outliers(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))).double()
    model[1].running_var.uniform_(0.01, 4)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    gm = do(capture(model), FoldBatchNorm(), split())
    torch.testing.assert_close(gm(x), model(x), rtol=1e-9, atol=1e-9)
    factor = (model[1].running_var + model[1].eps).rsqrt().view(-1, 1, 1, 1)
    largest = (model[0].weight * factor).abs().amax((0, 2, 3)).argmax()
    assert gm.get_submodule("0.weight_split").added[0] == largest


def test_a_tied_weight_is_split_once(do, tied):
    x = torch.randn(3, 2)
    gm = do(capture(tied), split())
    assert [name for name, module in gm.named_modules() if isinstance(module, ChannelSplit)] == ["a.weight_split"]
    torch.testing.assert_close(gm(x), tied(x))


def test_a_saved_model_is_loaded_bit_for_bit(tmp_path):
    model = with_outliers(nn.Sequential(nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)))
    x = torch.randn(4, 8, 6, 6)
    policy = {
        "version": 1,
        "steps": [
            {"kind": "split_channels", "rules": [{"ratio": 0.1}]},
            {"kind": "quantize", "rules": [{"weight": {"bits": 4}, "input": {"bits": 8}}]},
        ],
    }
    small = fxcompress.transform(model, policy, data=[x])
    fxcompress.save(small, tmp_path)
    fresh = with_outliers(nn.Sequential(nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)), seed=7)
    loaded = fxcompress.load(tmp_path, fresh)
    assert torch.equal(loaded(x), small(x))


GROUPS = (
    "only linear, conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d without groups can"
)


def test_groups_are_left_with_a_warning(do):
    net = with_outliers(nn.Sequential(nn.Conv2d(4, 4, 1, groups=4), nn.Conv2d(4, 2, 1)))
    message = f"split_channels rule 1: the input channels of '0' are not split: {GROUPS}; leave the others out"
    with pytest.warns(UserWarning, match=message):
        gm = do(capture(net), split())
    assert [name for name, module in gm.named_modules() if isinstance(module, ChannelSplit)] == ["1.weight_split"]


def test_what_is_left_is_in_no_plan(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1))
    steps = [
        {"kind": "split_channels", "rules": [{"ratio": 0.2}]},
        {"kind": "quantize", "rules": [{"weight": {"bits": 4}}]},
    ]
    policy, x = {"version": 1, "steps": steps}, torch.randn(2, 3, 8, 8)
    with pytest.warns(UserWarning, match="the input channels of '1' are not split"):
        small = fxcompress.transform(model, policy, example_inputs=x)
    fxcompress.save(small, tmp_path / "small")
    assert torch.equal(fxcompress.load(tmp_path / "small", model, example_inputs=x)(x), small(x))
    assert fxcompress.report(small).record.matched["split_channels rule 1"] == ("0", "2")


@pytest.mark.parametrize("rule", [{"ratio": 0.1}, {"ratio": 0.1, "select": {"names": ["0"]}}], ids=["only", "named"])
def test_groups_where_nothing_else_is_split(rule, do):
    net = nn.Sequential(nn.Conv2d(4, 4, 1, groups=2))
    message = rf"split_channels rule 1: the input channels of '0' \(conv2d\) cannot be split: {GROUPS}"
    with pytest.raises(PassError, match=message):
        do(capture(net), split(rule))


def test_after_quantize(do):
    net = nn.Sequential(nn.Linear(4, 4))
    message = (
        "split_channels rule 1: the weight of '0' already has Quantizer(int4, per channel) from an earlier step; "
        "state split_channels once, before quantize"
    )
    with pytest.raises(PassError, match=re.escape(message)):
        do(capture(net), Quantize(rules=({"weight": {"bits": 4}},)), split())


def test_rules_that_disagree_on_a_shared_weight(do, tied):
    message = (
        "weight 'a.weight' is shared by 'a' and 'b', but their rules disagree: split_channels rule 1 says ratio 0.3, "
        "split_channels rule 2 says 0.5; state one for both"
    )
    with pytest.raises(PassError, match=re.escape(message)):
        do(capture(tied), split({"ratio": 0.3}, {"select": {"names": ["b"]}, "ratio": 0.5}))
