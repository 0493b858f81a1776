"""gptq: smaller errors of layers than nearest rounding, on the inputs of the quantized model."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from fxcompress.errors import PassError
from fxcompress.graph import capture, verify
from fxcompress.graph.inputs import Arguments
from fxcompress.graph.mode import eval_mode
from fxcompress.measure.calibrate import calibrate
from fxcompress.passes import apply
from fxcompress.policies import FoldBatchNorm, Prune, Quantize
from fxcompress.tune.finished import Finished
from fxcompress.tune.gptq import gptq
from fxcompress.tune.walk import Walk
from tests.tune.obq import correlated, nearest, plain


def quantized(model, data, *rules, steps=()):
    gm = capture(model.eval())
    for step in (*steps, Quantize(rules=rules or ({"weight": {"bits": 3}},))):
        apply(step, gm)
    calibrate(gm, data)
    return gm


def run(gm, data, finished=None, **options):
    walk = Walk(gm, lambda: (Arguments((x,)) for x in data))
    with eval_mode(gm):
        gptq(gm, walk, finished or Finished(None), **{"block_size": 8, "damping": 0.01, "act_order": False} | options)
    verify(gm)
    return gm


def entering(gm, name="0"):
    """Return the weight as it leaves its quantizer."""
    return gm.get_submodule(f"{name}.weight_quantizer")(gm.get_parameter(f"{name}.weight")).detach()


class Addmm(nn.Module):
    """A layer that multiplies with its weight from the right, as those of GPT-2 do."""

    def __init__(self, columns, rows):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(columns, rows)), nn.Parameter(torch.zeros(rows))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


def split(x, size):
    return list(x.split(size))


RULES = ({}, {"per": "tensor", "symmetric": False}, {"per": "group", "group_size": 6})


@pytest.mark.parametrize("rule", [{"bits": 3} | rule for rule in RULES], ids=["channel", "tensor", "group"])
@pytest.mark.parametrize("act_order", [False, True])
def test_errors_of_layers_are_below_those_of_nearest_rounding(rule, act_order):
    data = correlated(20)
    for seed in range(5):
        torch.manual_seed(seed)
        layers = nn.Linear(20, 12), Addmm(20, 12)
        with torch.no_grad():
            layers[1].weight.copy_(layers[0].weight.T)
        errors = []
        for layer in layers:
            gm = quantized(nn.Sequential(layer), [data], {"weight": rule})
            exact = layer(data)
            before = (gm(data) - exact).square().mean().item()
            run(gm, split(data, 64), act_order=act_order)
            errors.append((gm(data) - exact).square().mean().item())
            assert errors[-1] < before
        assert errors[0] == pytest.approx(errors[1], rel=1e-3)  # the same layer in two spellings


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 8, 3, padding=1),
        nn.Conv2d(4, 8, (3, 2), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
        nn.Conv2d(4, 8, 3, groups=2),
        nn.Conv2d(4, 8, 3, groups=4, padding="same", dilation=2),
        nn.Conv2d(4, 8, (2, 4), padding="same"),
        nn.Conv2d(4, 8, 1, stride=2),
        nn.Conv1d(4, 8, 3, stride=2, padding=1),
        nn.Conv3d(4, 8, (2, 1, 3), stride=(1, 2, 1), padding=(1, 0, 1), groups=2),
    ],
    ids=["padded", "uneven", "grouped", "depthwise", "same", "pointwise", "one axis", "three axes"],
)
def test_a_convolution_is_a_linear_layer_on_patches(conv):
    torch.manual_seed(0)
    nn.init.normal_(conv.weight)
    function = getattr(F, f"conv{conv.weight.dim() - 2}d")
    smoothing = torch.rand(4, 4, *[3] * (conv.weight.dim() - 2))
    data = function(torch.randn(12, 4, *[9] * (conv.weight.dim() - 2)), smoothing, padding=1)
    found = entering(run(quantized(nn.Sequential(conv), [data]), split(data, 5)))
    kernels = torch.eye(4 * conv.weight[0, 0].numel()).view(-1, 4, *conv.kernel_size)  # each picks one input out
    patches = function(data, kernels, None, conv.stride, conv.padding, conv.dilation).flatten(2)
    groups = (x.chunk(conv.groups, axis) for x, axis in ((found, 0), (patches, 1), (conv.weight, 0)))
    for rows, inputs, weight in zip(*groups, strict=True):
        linear = nn.Linear(inputs.shape[1], len(rows), bias=False)
        linear.weight.data = weight.detach().flatten(1)
        inputs = inputs.transpose(1, 2).flatten(0, 1)
        alone = run(quantized(nn.Sequential(linear), [inputs]), [inputs])
        torch.testing.assert_close(rows.flatten(1), entering(alone), rtol=0, atol=1e-6)


def test_batches_are_unfolded_in_pieces(monkeypatch):
    data = [torch.randn(7, 4, 9, 9, generator=torch.Generator().manual_seed(0))]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3))
    whole = entering(run(quantized(model, data), data))
    monkeypatch.setattr("fxcompress.tune.gptq._UNFOLDED", 9 * 4 * 81 * 2)
    torch.testing.assert_close(entering(run(quantized(model, data), data)), whole)


class Net(nn.Module):
    """A batch norm to be divided out, and a layer whose input is made by quantized ones."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).amax((2, 3)))


def net():
    torch.manual_seed(0)
    model = Net()
    nn.init.uniform_(model.norm.weight, -2, 2)
    nn.init.uniform_(model.norm.running_var, 0.5, 2)
    return model.eval()


def images():
    return list(torch.randn(3, 8, 3, 8, 8, generator=torch.Generator().manual_seed(1)))


W3A4 = {"weight": {"bits": 3}, "input": {"bits": 4}}


def test_inputs_are_those_of_the_quantized_model():
    gm = run(quantized(net(), images(), W3A4, steps=[FoldBatchNorm()]), images())
    x = torch.cat(images())
    with torch.no_grad():
        first = gm.get_submodule("x_quantizer")(x)
        conv, norm = net().conv, net().norm
        weight = conv.weight * (norm.weight / (norm.running_var + norm.eps).sqrt()).view(-1, 1, 1, 1)
        rows = F.unfold(first, 3).transpose(1, 2).flatten(0, 1).double().numpy()
        scale = gm.get_submodule("conv.weight_quantizer").scale.double().numpy()
        kernel = plain(weight.flatten(1).numpy(), rows.T @ rows, nearest(scale))
        bias = (conv.bias - norm.running_mean) * norm.weight / (norm.running_var + norm.eps).sqrt() + norm.bias
        second = torch.relu(F.conv2d(first, torch.tensor(kernel).float().view_as(weight), bias)).amax((2, 3))
        second = gm.get_submodule("amax_quantizer")(second).double().numpy()
        scale = gm.get_submodule("head.weight_quantizer").scale.double().numpy()
        head = plain(net().head.weight.numpy(), second.T @ second, nearest(scale))
    np.testing.assert_allclose(entering(gm, "head").numpy(), head, atol=1e-6)


def test_pruned_weights_behind_a_norm_stay_zero():
    steps = FoldBatchNorm(), Prune(rules=({"sparsity": 0.5},))
    gm = run(quantized(net(), images(), steps=steps), images())
    for name in ("conv", "head"):
        mask = gm.get_submodule(f"{name}.weight_mask").mask
        weight = gm.get_parameter(f"{name}.weight")
        change = (weight - net().get_parameter(f"{name}.weight")).abs()
        assert change[~mask].max() < 1e-7
        assert change[mask].max() > 1e-2
    levels = run_and_keep(gm, "conv_weight_quantizer")
    assert (levels[~gm.get_submodule("conv.weight_mask").mask] == 0).all()


def run_and_keep(gm, name):
    """Return what a node gives."""
    seen = []
    node = next(node for node in gm.graph.nodes if node.name == name)
    handle = gm.get_submodule(node.target).register_forward_hook(lambda module, args, result: seen.append(result))
    gm(images()[0])
    handle.remove()
    return seen[0].detach()


def test_the_weights_that_are_kept_make_up_for_those_that_are_pruned():
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(20, 6)), correlated(20)
    rule = {"weight": {"bits": 8}}  # so fine that what is made up for does not round to zero by itself
    gm = run(quantized(model, [data], rule, steps=[Prune(rules=({"sparsity": 0.5},))]), [data])
    mask = gm.get_submodule("0.weight_mask").mask
    scale = gm.get_submodule("0.weight_quantizer").scale.double().numpy()
    inputs = data.double().numpy()

    def quantize(x, column):
        return nearest(scale, high=127)(x, column) * mask[:, column].numpy()

    expected = plain((model[0].weight * mask).detach().numpy(), inputs.T @ inputs, quantize)
    np.testing.assert_allclose((entering(gm) * mask).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("observer", ["minmax", "mse"])
def test_groups_are_observed_anew_and_stay_in_the_state(observer, tmp_path):
    data = [correlated(20)]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 6))
    rule = {"weight": {"bits": 4, "per": "group", "group_size": 6, "symmetric": False, "observer": observer}}
    before = quantized(model, data, rule).get_submodule("0.weight_quantizer")
    gm = run(quantized(model, data, rule), data, Finished(tmp_path))
    after = gm.get_submodule("0.weight_quantizer")
    assert torch.equal(after.scale[:, 0], before.scale[:, 0])  # nothing has been passed on to the first group yet
    assert (after.scale[:, 1:] - before.scale[:, 1:]).abs().max() > 1e-3
    weight = gm.get_parameter("0.weight")
    torch.testing.assert_close(after(weight), weight, rtol=0, atol=1e-6)  # it is on these grids
    again = run(quantized(model, data, rule), [], Finished(tmp_path))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in gm.state_dict().items())
    ordered = run(quantized(model, data, rule), data, act_order=True)
    assert torch.equal(ordered.get_submodule("0.weight_quantizer").scale, before.scale)


def test_finished_layers_are_not_done_again(tmp_path):
    expected = run(quantized(net(), images(), W3A4), images(), Finished(tmp_path)).state_dict()
    kept = torch.full((4, 6), 2.0)
    save_file({"head.weight": kept}, tmp_path / "head.safetensors")
    (tmp_path / "conv.safetensors").unlink()
    again = run(quantized(net(), images(), W3A4), images(), Finished(tmp_path)).state_dict()
    assert torch.equal(again["conv.weight"], expected["conv.weight"])
    assert torch.equal(again["head.weight"], kept)


def test_layers_that_read_one_tensor_are_rounded_as_each_alone():
    class Three(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(20, 4) for _ in range(3))

        def forward(self, x):
            return self.q(x) + self.k(x) * self.v(x)

    torch.manual_seed(0)
    model, data = Three(), [correlated(20)]
    gm = run(quantized(model, data), data)
    for name in ("q", "k", "v"):
        alone = run(quantized(nn.Sequential(getattr(model, name)), data), data)
        assert torch.equal(entering(gm, name), entering(alone))


def test_what_gptq_does_not_round():
    model, data = nn.Sequential(nn.ConvTranspose2d(3, 3, 2), nn.Conv2d(3, 4, 2), nn.Conv2d(4, 4, 2)), images()
    rules = {"weight": {"bits": 4}}, {"select": {"names": ["1"]}, "weight": {"bits": "ternary"}}
    message = (
        r"gptq: 2 of 3 quantized weights cannot be rounded \(the first is '0'\): it is that of a conv_transpose2d, "
        "not of linear, addmm, conv1d, conv2d, conv3d"
    )
    gm = quantized(model, data, *rules)
    with pytest.warns(UserWarning, match=message):
        run(gm, data)
    assert torch.equal(gm.get_parameter("0.weight"), model[0].weight)
    assert torch.equal(gm.get_parameter("1.weight"), model[1].weight)
    message = (
        r"gptq: none of 1 quantized weights can be rounded \(the first is '0'\): it is that of a conv_transpose2d"
    )
    with pytest.raises(PassError, match=message):
        run(quantized(nn.Sequential(model[0]), data), data)


def test_the_layer_whose_inputs_are_too_much_alike_is_named():
    data = [torch.ones(50, 1) * torch.randn(1, 20)]
    message = "gptq: '0': the Hessian of its inputs is not positive definite with damping 1e-300"
    with pytest.raises(PassError, match=message):
        run(quantized(nn.Sequential(nn.Linear(20, 4)), data), data, damping=1e-300)
