"""bias_correction by batch norms: the means that they tell, against Monte Carlo, by hand and where they are exact."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from fxcompress.errors import PassError
from fxcompress.graph import capture
from fxcompress.measure.calibrate import calibrate
from fxcompress.passes import apply
from fxcompress.policies import Quantize, SplitChannels
from tests.tune.correcting import batches, correct, quantized, trained


class Told(nn.Module):
    """Norms, folded or not, before plain, grouped and transposed layers."""

    def __init__(self, activation, kind=None):
        super().__init__()
        self.conv, self.norm, self.activation = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), activation
        self.layer = kind or nn.Conv2d(6, 4, 1)

    def forward(self, x):
        return self.layer(self.activation(self.norm(self.conv(x))))


def monte_carlo(norm, clip, values=2_000_000):
    """Return the mean of clipped normal values for each channel, and its standard error."""
    generator = np.random.default_rng(0)
    gamma, beta = (one.detach().double().numpy() for one in (norm.weight, norm.bias))
    x = clip(beta[:, None] + gamma[:, None] * generator.standard_normal((len(beta), values // len(beta))))
    return x.mean(1), x.std(1) / math.sqrt(x.shape[1])


@pytest.mark.parametrize(
    ("activation", "clip"),
    [
        (nn.Identity(), lambda x: x),
        (nn.ReLU(), lambda x: np.maximum(x, 0)),
        (nn.ReLU6(), lambda x: np.clip(x, 0, 6)),
        (nn.Hardtanh(-0.5, 0.25), lambda x: np.clip(x, -0.5, 0.25)),
        (nn.Sequential(nn.ReLU(), nn.Dropout(), nn.AvgPool2d(2)), lambda x: np.maximum(x, 0)),
    ],
    ids=["none", "relu", "relu6", "hardtanh", "pool"],
)
@pytest.mark.parametrize("fold", [True, False])
def test_by_batch_norm_against_monte_carlo(activation, clip, fold):
    model = trained(Told(activation))
    with torch.no_grad():
        model.norm.bias[0], model.norm.weight[1], model.norm.bias[5] = 6.5, -0.7, 0.0
    gm = quantized(model, fold=fold)
    with pytest.warns(UserWarning, match=r"1 of 2 layers .* cannot be corrected \(the first is 'conv'\)"):
        correct(gm, "batch_norm")
    weight = model.layer.weight.detach()
    error = (gm.get_submodule("layer.weight_quantizer")(weight).double() - weight.double()).numpy()[:, :, 0, 0]
    mean, deviation = monte_carlo(model.norm, clip)
    shift = (gm.get_parameter("layer.bias") - model.layer.bias).detach().double().numpy()
    assert np.abs(shift).max() > 1e-2
    np.testing.assert_array_less(np.abs(shift + error @ mean), 5 * np.abs(error) @ deviation + 1e-6)


def test_by_batch_norm_by_hand():
    # E[relu(x)] is 1/sqrt(2 pi) for mean 0 and deviation 1, and 1 for mean 1 and deviation 0. The weight (0.9, 0.3)
    # is rounded to (0.9, 0.0) with steps of 0.9, so that the error of the output is -0.3 times the second mean.
    model = Told(nn.ReLU(), nn.Conv2d(2, 1, 1))
    model.conv, model.norm = nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)
    rule = {"select": {"names": ["layer"]}, "weight": {"bits": 2}}
    for gamma, beta, mean in ((1.0, 0.0, 1 / math.sqrt(2 * math.pi)), (0.0, 1.0, 1.0)):
        with torch.no_grad():
            model.layer.weight.copy_(torch.tensor([0.9, 0.3]).view(1, 2, 1, 1))
            model.norm.weight.fill_(gamma)
            model.norm.bias.fill_(beta)
        gm = correct(quantized(model.eval(), rule), "batch_norm")
        shift = (gm.get_parameter("layer.bias") - model.layer.bias).item()
        assert shift == pytest.approx(0.3 * mean, rel=1e-5)


@pytest.mark.parametrize(
    "kind",
    [
        nn.Conv2d(6, 4, 3, groups=2),
        nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2),
        nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5)),
    ],
    ids=["grouped", "transposed", "linear"],
)
def test_constant_inputs_are_corrected_without_error(kind):
    # with gamma 0 the norm gives beta everywhere, so that what it tells is all there is to know
    model = trained(Told(nn.ReLU(), kind))
    nn.init.zeros_(model.norm.weight)
    exact = capture(model)
    gm = quantized(model, {"weight": {"bits": 3}})
    x = batches()[0]
    assert (gm(x) - exact(x)).abs().max() > 1e-2
    with pytest.warns(UserWarning, match="cannot be corrected"):
        correct(gm, "batch_norm")
    error = (gm(x) - exact(x)).detach()
    if isinstance(kind, nn.ConvTranspose2d):  # the mean over what one input makes
        error = nn.functional.avg_pool2d(error, 2)
    assert error.abs().max() < 1e-5


def test_a_norm_folded_into_a_linear_layer_tells_the_mean_of_the_next():
    model = trained(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4)))
    nn.init.zeros_(model[1].weight)
    exact, x = capture(model), torch.randn(5, 6)
    gm = quantized(model, {"weight": {"bits": 3}})
    assert (gm(x) - exact(x)).abs().max() > 1e-2
    with pytest.warns(UserWarning, match="1 of 2 layers with a quantized weight cannot be corrected"):
        correct(gm, "batch_norm")
    assert (gm(x) - exact(x)).abs().max() < 1e-5


@pytest.mark.parametrize(
    "kind", [nn.Conv2d(6, 4, 3), nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5))]
)
def test_a_copied_channel_has_the_mean_of_its_original(kind):
    model = trained(Told(nn.ReLU(), kind))
    nn.init.zeros_(model.norm.weight)
    select, x = {"names": ["layer*"]}, batches()[0]
    gm = capture(model)
    apply(SplitChannels(rules=[{"select": select, "ratio": 0.2}]), gm)
    apply(Quantize(rules=[{"select": select, "weight": {"bits": 3}}]), gm)
    calibrate(gm, None)
    assert (gm(x) - model(x)).abs().max() > 1e-2
    assert (correct(gm, "batch_norm")(x) - model(x)).abs().max() < 1e-5


def test_means_are_those_before_any_correction():
    model = trained(nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(3))))
    gm = quantized(model)
    shifts = []
    with pytest.warns(UserWarning, match="1 of 3 layers"):
        correct(gm, "batch_norm")
    for index in (1, 2):
        conv, norm = model[index]
        factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        weight = (conv.weight * factor.view(-1, 1, 1, 1)).detach()
        error = gm.get_submodule(f"{index}.0.weight_quantizer")(weight) - weight
        shifts.append(-error[:, :, 0, 0] @ model[index - 1][1].bias)
        torch.testing.assert_close(gm.get_parameter(f"{index}.1.bias"), norm.bias + shifts[-1], rtol=0, atol=1e-6)
    assert shifts[0].abs().max() > 1e-3


class Untold(nn.Module):
    """Layers whose mean input no batch norm tells."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)
        self.added, self.pooled, self.rows = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 1), nn.Linear(10, 2)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        return self.added(x + 1), self.pooled(torch.max_pool2d(x, 2)), self.rows(x)


def test_by_batch_norm_when_none_tells():
    message = (
        r"none of 4 layers with a quantized weight can be corrected \(the first is 'conv'\): they lack an input "
        "whose mean a batch norm tells, or a bias of their own; statistics: data does without batch norms"
    )
    with pytest.raises(PassError, match=message):
        correct(quantized(trained(Untold())), "batch_norm")


def test_by_batch_norm_behind_a_step_that_rounds():
    gm = quantized(trained(Told(nn.ReLU())), fold=False)
    with torch.no_grad():
        for name in ("conv", "layer"):
            weight = gm.get_parameter(f"{name}.weight")
            weight.copy_(gm.get_submodule(f"{name}.weight_quantizer")(weight))
    with (
        pytest.warns(UserWarning, match="the weights are levels of their quantizers already"),
        pytest.warns(UserWarning, match="1 of 2 layers with a quantized weight cannot be corrected"),
    ):
        correct(gm, "batch_norm")
