"""equalize: the function stays, ranges become equal, and rounding costs less."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxcompress.graph import capture
from fxcompress.policies import Equalize, FoldBatchNorm

FOLD = FoldBatchNorm()
SCALE = Equalize(absorb_bias=False)


def uneven(model, seed=0):
    """Return the model in float64 and eval mode with channels, norms and biases of very different sizes."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.1, 3)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
        elif isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            shape = (-1, *[1] * (module.weight.dim() - 1))
            module.weight.data *= torch.exp(3 * torch.randn(len(module.weight)).view(shape))
    return model.double().eval()


class Separable(nn.Module):
    """Convolution, depthwise convolution, convolution: each with its norm, ReLU between."""

    def __init__(self, act=nn.ReLU):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.act = act()

    def forward(self, x):
        x = self.act(self.bn1(self.conv1(x)))
        x = self.act(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


class Classifier(nn.Module):
    """Separable blocks with a residual connection, pooled and classified."""

    def __init__(self):
        super().__init__()
        self.stem, self.block1, self.block2 = nn.Conv2d(2, 3, 3), Separable(), Separable()
        self.expand, self.shrink = nn.Conv2d(6, 3, 1), nn.Conv2d(6, 5, 3)
        self.drop, self.fc1, self.fc2 = nn.Dropout(), nn.Linear(5 * 4, 7), nn.Linear(7, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = self.block2(self.expand(self.block1(x)) + x)
        x = F.adaptive_avg_pool2d(F.max_pool2d(F.leaky_relu(self.shrink(x)), 2), 2)
        return self.fc2(F.relu(self.fc1(self.drop(x.flatten(1)))))


def effective(layer, bn=None):
    """Return a layer's weight with its norm folded in."""
    weight = layer.weight.detach()
    if bn is None:
        return weight
    factor = bn.weight.detach() / (bn.running_var + bn.eps).sqrt()
    return weight * factor.view(-1, *[1] * (weight.dim() - 1))


def test_as_text(do, reads):
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU6(), nn.Conv2d(3, 2, 1))
    reads(
        do(capture(net.eval()), FOLD, Equalize()),
        """
        input_1: input
        _0_weight_folded = folded_weight(0.weight, 1.weight, 1.running_var, 1e-05, 0)
        _0_bias_folded = folded_bias(0.bias, 1.weight, 1.bias, 1.running_mean, 1.running_var, 1e-05)
        _0 = conv2d(input_1, _0_weight_folded, _0_bias_folded, (1, 1), (0, 0), (1, 1), 1)
        _2 = relu(_0)
        _3 = conv2d(_2, 3.weight, 3.bias, (1, 1), (0, 0), (1, 1), 1)
        return _3
        """,
    )


def test_two_layers_by_hand(do):
    net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[8.0], [0.5]]))
        net[0].bias.copy_(torch.tensor([4.0, -1.0]))
        net[2].weight.copy_(torch.tensor([[2.0, 2.0]]))
    gm = do(capture(net), SCALE)
    # s = sqrt(8 / 2) = 2 and sqrt(0.5 / 2) = 1/2
    assert gm.get_parameter("0.weight").flatten().tolist() == [4.0, 1.0]
    assert gm.get_parameter("0.bias").tolist() == [2.0, -2.0]
    assert gm.get_parameter("2.weight").flatten().tolist() == [4.0, 1.0]


@pytest.mark.parametrize("way", ["symbolic", "export", "islands"])
def test_the_function_stays(way, do):
    model = uneven(Classifier())
    x = torch.randn(4, 2, 14, 14, dtype=torch.float64)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gm = do(capture(model, x, way=way), FOLD, SCALE)
    torch.testing.assert_close(gm(x), model(x), rtol=1e-9, atol=1e-9)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    changed = {name for name, value in gm.named_parameters() if not torch.equal(value, state[name])}
    inside = {f"block{block}.{name}.weight" for block in (1, 2) for name in ("bn1", "conv2", "bn2", "conv3")}
    across = {"shrink.weight", "shrink.bias", "fc1.weight", "fc1.bias", "fc2.weight"}
    assert changed >= inside  # by islands these blocks are all that graphs see
    assert way == "islands" or changed >= across


def test_ranges_of_a_depthwise_chain_become_equal(do):
    model = uneven(Separable())
    do_graph = do(capture(model), FOLD, SCALE)
    parts = {name: do_graph.get_submodule(name) for name in ("conv1", "conv2", "conv3", "bn1", "bn2", "bn3")}
    first = effective(parts["conv1"], parts["bn1"]).abs().amax((1, 2, 3))
    middle = effective(parts["conv2"], parts["bn2"]).abs().amax((1, 2, 3))
    last = effective(parts["conv3"], parts["bn3"]).abs().amax((0, 2, 3))
    torch.testing.assert_close(first, middle, rtol=1e-4, atol=0)
    torch.testing.assert_close(middle, last, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("first", "between", "second", "shape"),
    [
        (nn.Conv1d(4, 6, 3, groups=2), nn.PReLU(6), nn.Conv1d(6, 4, 3, groups=2), (2, 4, 9)),
        (nn.Conv2d(2, 6, 3), nn.AvgPool2d(2), nn.ConvTranspose2d(6, 4, 2, groups=2), (2, 2, 8, 8)),
        (nn.ConvTranspose2d(4, 6, 2, groups=2), nn.ReLU(), nn.Conv2d(6, 3, 1), (2, 4, 5, 5)),
        (nn.Conv3d(2, 4, 2), nn.MaxPool3d(2), nn.Conv3d(4, 2, 1), (2, 2, 4, 4, 4)),
        (nn.Conv2d(2, 4, 3), nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), nn.Linear(16, 3), (2, 2, 8, 8)),
        (nn.Linear(3, 5), nn.LeakyReLU(), nn.Linear(5, 2), (4, 7, 3)),
        (nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), (2, 8, 8)),  # one image without a batch
    ],
    ids=lambda value: type(value).__name__,
)
def test_pairs_of_every_kind(first, between, second, shape, do):
    model = uneven(nn.Sequential(copy.deepcopy(first), copy.deepcopy(between), copy.deepcopy(second)))
    x = torch.randn(shape, dtype=torch.float64)
    gm = do(capture(model, x), SCALE)
    torch.testing.assert_close(gm(x), model(x), rtol=1e-9, atol=1e-9)
    changed = {name for name, value in gm.named_parameters() if not torch.equal(value, model.get_parameter(name))}
    assert changed == {"0.weight", "0.bias", "2.weight"}


def test_linear_layers_with_norms(do):
    layers = nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
    model = uneven(nn.Sequential(*layers))
    x = torch.randn(6, 3, dtype=torch.float64)
    gm = do(capture(model), FOLD, SCALE)
    torch.testing.assert_close(gm(x), model(x), rtol=1e-9, atol=1e-9)
    changed = {name for name, value in gm.named_parameters() if not torch.equal(value, model.get_parameter(name))}
    assert changed == {"1.weight", "1.bias", "3.weight", "4.weight", "4.bias", "5.weight"}


class Mean(nn.Module):
    def __init__(self, dims, keepdim=False):
        super().__init__()
        self.dims, self.keepdim = dims, keepdim

    def forward(self, x):
        return x.mean(self.dims, keepdim=self.keepdim)


@pytest.mark.parametrize(
    "between",
    [Mean((2, 3)), Mean([-1, -2]), nn.Sequential(Mean((2, 3), keepdim=True), nn.Flatten())],
    ids=["axes", "from the end", "kept"],
)
def test_means_over_positions_are_crossed(between, do):
    model = uneven(nn.Sequential(nn.Conv2d(2, 4, 3), between, nn.Linear(4, 3)))
    x = torch.randn(3, 2, 6, 6, dtype=torch.float64)
    gm = do(capture(model), SCALE)
    torch.testing.assert_close(gm(x), model(x), rtol=1e-9, atol=1e-9)
    assert not torch.equal(gm.get_parameter("0.weight"), model[0].weight)


def test_relu6_is_replaced(do):
    model, x = (
        uneven(nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU6(), nn.Conv2d(4, 2, 1))),
        20 * torch.randn(2, 2, 5, 5, dtype=torch.float64),
    )
    gm = do(capture(model), SCALE)
    torch.testing.assert_close(gm(x), model[2](F.relu(model[0](x))), rtol=1e-9, atol=1e-9)


def test_channels_that_are_zero_stay(do):
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).double()
    with torch.no_grad():
        model[0].weight[0] = 0
        model[2].weight[:, 1] = 0
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    gm = do(capture(model), SCALE)
    torch.testing.assert_close(gm(x), model(x), rtol=1e-9, atol=1e-9)


def test_a_norm_with_a_large_bias_is_absorbed(do):
    model = uneven(nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 2)))
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([0.0, 5.0, 100.0, -7.0]))
        model[1].weight.copy_(torch.tensor([1.0, -1.0, 2.0, 1.0]))
        model[1].running_var.copy_(model[0](torch.randn(1, 2, 500, 500).double()).var((0, 2, 3)))
        model[1].running_mean.copy_(model[0].bias)
    gm = do(capture(model), FOLD, Equalize())
    scaled = do(capture(model), FOLD, SCALE)
    gamma, beta = scaled.get_parameter("1.weight"), scaled.get_parameter("1.bias")
    shift = (beta - 3 * gamma.abs()).clamp(min=0)
    assert (shift > 0).tolist() == [False, True, True, False]
    torch.testing.assert_close(gm.get_parameter("1.bias"), beta - shift)
    x = torch.randn(1, 2, 40, 40, dtype=torch.float64)
    # where no value is clipped that was not before, the model computes the same
    normal = ((model[1](model[0](x)) - model[1].bias.view(1, -1, 1, 1)) / model[1].weight.view(1, -1, 1, 1)).abs()
    inside = F.max_pool2d((normal.amax(1, keepdim=True) > 3).double(), 2, stride=1) == 0
    assert inside.double().mean() > 0.9
    torch.testing.assert_close(gm(x) * inside, model(x) * inside, rtol=1e-9, atol=1e-9)


def test_padding_keeps_a_bias_from_being_absorbed(do):
    model = uneven(nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1)))
    nn.init.constant_(model[1].bias, 50.0)
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    gm = do(capture(model), FOLD, Equalize())
    torch.testing.assert_close(gm(x), model(x), rtol=1e-9, atol=1e-9)


def test_weights_in_8_bits_for_a_tensor_lose_far_less(do):
    torch.manual_seed(0)
    model = Separable().eval()
    with torch.no_grad():  # hide a scale in each channel, as trained depthwise networks do
        hidden = torch.exp(2 * torch.randn(8))
        model.conv1.weight *= hidden.view(-1, 1, 1, 1)
        model.conv2.weight /= hidden.view(-1, 1, 1, 1)
    x = torch.randn(16, 3, 8, 8)

    def error(*steps):
        gm = do(capture(model), FOLD, *steps)
        wanted = model(x)
        for name, bn in (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")):
            folded = effective(gm.get_submodule(name), gm.get_submodule(bn))
            step = folded.abs().max() / 127
            with torch.no_grad():
                rounded = (folded / step).round() * step
                gm.get_parameter(f"{name}.weight").mul_(torch.where(folded == 0, 1.0, rounded / folded))
        return (gm(x) - wanted).square().mean().item()

    assert error(SCALE) < error() / 30
