"""Weights with split channels: parts round to codes that add up, and a plan's sizes are what a file holds."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import fxcompress
from fxcompress.nn import ChannelSplit


def policy(weight, ratio=0.3, **input):
    steps = [
        {"kind": "split_channels", "rules": [{"ratio": ratio}]},
        {"kind": "quantize", "rules": [{"weight": weight, **input}]},
    ]
    return {"version": 1, "steps": steps, "target": "onnxruntime" if input else "none"}


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 9, 3))
    with torch.no_grad():
        for layer in (net[0], net[3]):
            layer.weight.view(-1)[torch.randperm(layer.weight.numel())[:3]] *= 8
    return net.eval()


@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_parts_round_to_codes_that_add_up_to_that_of_the_whole(model, per):
    """Each output of a layer on equal inputs is that of the weight rounded on the same grid, unsplit."""
    gm = fxcompress.transform(model, policy({"bits": 4, "per": per}))
    for name, layer in (("0", model[0]), ("3", model[3])):
        split, quantizer = gm.get_submodule(f"{name}.weight_split"), gm.get_submodule(f"{name}.weight_quantizer")
        parts = quantizer(split(layer.weight)).detach().double().numpy()
        whole = parts[:, : layer.weight.shape[1]].copy()
        np.add.at(whole, (slice(None), split.added.numpy()), parts[:, layer.weight.shape[1] :])
        weight = layer.weight.detach().double().numpy()
        scale = quantizer.scale.double().numpy().reshape(-1, *[1] * (weight.ndim - 1))
        assert np.abs(weight / scale).max() > 7  # more than the grid of one part holds
        np.testing.assert_allclose(whole, np.rint(weight / scale) * scale, atol=1e-6)


@pytest.mark.parametrize(
    "weight", [{"bits": 4, "per": "group", "group_size": 4}, {"bits": 4, "codebook": "apot"}, {"bits": "e4m3"}]
)
def test_other_forms_keep_plain_halves(model, weight):
    gm = fxcompress.transform(model, policy(weight))
    assert all(module.step.eq(0).all() for module in gm.modules() if isinstance(module, ChannelSplit))


def test_a_plan_and_a_saved_model_have_the_same_steps(model, tmp_path):
    x = torch.randn(4, 4, 5, 5)
    gm = fxcompress.transform(model, policy({"bits": 3}))
    assert gm.get_submodule("0.weight_split").step.gt(0).all()
    assert torch.equal(fxcompress.transform(model, fxcompress.plan(model, policy({"bits": 3})))(x), gm(x))
    fxcompress.save(gm, tmp_path)
    assert torch.equal(fxcompress.load(tmp_path, model)(x), gm(x))


def test_open_bits_leave_plain_halves_until_they_are_chosen(model):
    x, open_bits = torch.randn(16, 4, 5, 5), policy({"bits": [2, 4]})
    open_bits["search"] = {"budgets": {"size": "30%"}}
    given = {"data": [(x, torch.randint(3, (16,)))], "loss": nn.functional.cross_entropy}
    decided = fxcompress.plan(model, open_bits, **given)
    gm = fxcompress.transform(model, decided)
    assert gm.get_submodule("0.weight_split").step.gt(0).all()
    assert torch.equal(fxcompress.transform(model, open_bits, **given)(x), gm(x))


@pytest.mark.parametrize("ratio", [0.1, 0.5])
def test_the_size_is_that_of_the_widened_weight_in_the_file(model, ratio, tmp_path):
    x = torch.randn(8, 4, 5, 5)
    gm = fxcompress.transform(model, policy({"bits": 4}, ratio, input={"bits": 8}), data=[x])
    fxcompress.lower(gm, tmp_path / "model.onnx", x, max_difference=0.5)
    tensors = onnx.load(tmp_path / "model.onnx").graph.initializer
    stored = {one.name: onnx.numpy_helper.to_array(one) for one in tensors}
    for row, added in zip(fxcompress.report(gm).record.layers, (ratio * 4, ratio * 54), strict=True):
        weight = model.get_submodule(row.name).weight
        each = weight[:, :1].numel()
        in_file = sum(value.nbytes for name, value in stored.items() if name.startswith(f"{row.name}_weight.codes"))
        assert row.parameters == weight.numel() + int(np.ceil(added)) * each
        # the same in the plan, which counts scales too, and a bias of int32 with a scale for each channel
        assert row.size == in_file + 4 * len(weight) + 8 * len(weight)
        assert row.float_size == 4 * (weight.numel() + len(weight))  # of the model as it was
