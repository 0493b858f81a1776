"""Calibration of weights whose channels get bits of their own: which bits, which ranges, the same model again."""

import numpy as np
import pytest
import torch
from torch import nn

import fxcompress
from fxcompress.errors import LoweringError
from fxcompress.nn.allocated import AllocatedQuantizer
from fxcompress.policies import dump, parse


def policy(tune=(), **weight):
    rules = [{"weight": {"bits": 4, "allocate": True, **weight}}]
    return {"version": 1, "steps": [{"kind": "quantize", "rules": rules}], "tune": list(tune)}


@pytest.fixture
def model():
    """Return a model whose first layer has channels that reach to 1, 8, 64 and 512."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    with torch.no_grad():
        weight = net[0].weight
        weight.mul_(torch.tensor([1.0, 8.0, 64.0, 512.0]).view(-1, 1) / weight.abs().amax(1, keepdim=True))
    return net


def quantizer(gm, name="0.weight_quantizer"):
    found = gm.get_submodule(name)
    assert isinstance(found, AllocatedQuantizer)
    return found


def test_bits_go_by_the_reach_of_the_channels(model):
    gm = fxcompress.transform(model, policy())
    assert quantizer(gm).channel_bits.tolist() == [1, 3, 5, 7]  # levels go with the two thirds power: 4 times as many
    w, bits = model[0].weight.detach().double().numpy(), np.array([1, 3, 5, 7])
    steps = np.float32(np.abs(w).max(1) / (2.0 ** (bits - 1) - 1).clip(1))[:, None]
    expected = np.rint(w / steps) * steps
    expected[0] = np.where(w[0] < 0, -1, 1) * np.abs(w[0]).mean()  # of two signed levels the least squared error
    np.testing.assert_allclose(quantizer(gm)(model[0].weight).detach().numpy(), expected, rtol=1e-6)


def test_affine_bits_go_by_the_whole_range(model):
    """From 0 to 1 and from -16 to 16 is 32 times as far, which is 3.3 bits; by the reach it would be 2.7 bits."""
    with torch.no_grad():
        model[0].weight[:2] = torch.linspace(0, 1, 6)
        model[0].weight[2:] = torch.linspace(-16, 16, 6)
    assert quantizer(fxcompress.transform(model, policy(symmetric=False))).channel_bits.tolist() == [2, 2, 6, 6]
    assert quantizer(fxcompress.transform(model, policy())).channel_bits.tolist() == [3, 3, 5, 5]


@pytest.mark.parametrize("observer", ["mse", {"percentile": {"q": 80}}, "aciq"])
def test_the_observer_is_asked_for_each_width(model, observer):
    """What it finds for a channel is what it finds for a weight of the same bits that has this channel alone."""
    gm = fxcompress.transform(model, policy(observer=observer))
    for channel, bits in enumerate([1, 3, 5, 7]):
        if bits > 1:
            alone = nn.Linear(6, 1)
            alone.weight = nn.Parameter(model[0].weight[channel : channel + 1].detach().clone())
            rules = [{"weight": {"bits": bits, "observer": observer}}]
            one = {"version": 1, "steps": [{"kind": "quantize", "rules": rules}]}
            found = fxcompress.transform(alone, one).get_submodule("weight_quantizer")
            assert found.scale.item() == quantizer(gm).scale[channel].item()


def test_a_channel_of_zeros_gets_no_bits(model):
    with torch.no_grad():
        model[0].weight[1] = 0
    gm = fxcompress.transform(model, policy())
    assert quantizer(gm).channel_bits[1] == 0
    assert quantizer(gm)(model[0].weight)[1].eq(0).all()
    assert gm(torch.randn(2, 6)).isfinite().all()


def test_less_error_than_alike_bits_where_channels_differ(model):
    """Bits are given for the sum of squared errors; of that the widest channel has almost all."""
    allocated = fxcompress.transform(model, policy())
    alike = fxcompress.transform(model, policy(allocate=False))
    errors = [
        (gm.get_submodule("0.weight_quantizer")(model[0].weight) - model[0].weight).square().sum().item()
        for gm in (allocated, alike)
    ]
    assert errors[0] < 0.1 * errors[1]


def test_the_plan_says_what_is_stored(model):
    decided = fxcompress.plan(model, policy())
    first, second = decided.plan.layers
    assert first.decision == "Wint4 on average"
    assert first.size == 6 * (1 + 3 + 5 + 7) // 8 + 4 * (4 + 1) + 4 * 4  # codes; scales and bits; biases
    assert second.size == 4 * 3 * 4 // 8 + 3 * (4 + 1) + 3 * 4
    assert parse(dump(decided), "again") == decided


@pytest.mark.parametrize("tune", [(), ({"gptq": {}}, {"ada_round": {"iterations": 3}}, "bias_correction")])
@pytest.mark.filterwarnings("ignore:.*cannot be rounded")
def test_from_plan_and_from_files_the_same_model(model, tune, tmp_path):
    x = torch.randn(32, 6)
    mixed = policy(tune)
    mixed["steps"][0]["rules"].append({"select": {"names": ["2"]}, "weight": {"allocate": False}})
    given = {"data": [x], "example_inputs": x}
    gm = fxcompress.transform(model, mixed, **given)
    again = fxcompress.transform(model, fxcompress.plan(model, mixed, **given), **given)
    assert torch.equal(again(x), gm(x))
    fxcompress.save(gm, tmp_path)
    assert torch.equal(fxcompress.load(tmp_path, model)(x), gm(x))


@pytest.mark.parametrize("step", ["gptq", "ada_round", "block_reconstruction"])
def test_steps_that_round_warn_of_it(model, step):
    mixed = policy([step if step == "gptq" else {step: {"iterations": 1}}])
    mixed["steps"][0]["rules"].append({"select": {"names": ["2"]}, "weight": {"allocate": False}})
    said = rf"{step}: 1 of 2 quantized weights cannot be rounded \(the first is '0'\): .*even steps"
    with pytest.warns(UserWarning, match=said):
        fxcompress.transform(model, mixed, data=[torch.randn(32, 6)])


def test_it_is_not_lowered(model, tmp_path):
    said = r"the weight of '0' is Quantizer\(int4 on average, per channel\), which cannot be lowered"
    with pytest.raises(LoweringError, match=said):
        fxcompress.lower(fxcompress.transform(model, policy()), tmp_path / "model.onnx", torch.randn(2, 6))
