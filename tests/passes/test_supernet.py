"""supernet: as text, and that the alternatives start from what the layer computes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxcompress.errors import PassError, PolicyError
from fxcompress.graph import capture
from fxcompress.nn import Choice
from fxcompress.policies import FoldBatchNorm, Prune, Quantize, Supernet


def sizes(*kernel_size, names=("*",)):
    value = kernel_size if len(kernel_size) > 1 else kernel_size[0]
    return Supernet(rules=({"select": {"names": names}, "kernel_size": value},))


def net(*layers):
    return nn.Sequential(*layers).double()


CONVOLUTIONS = [
    (nn.Conv1d(2, 3, 3, padding=1), (2, 9)),
    (nn.Conv2d(2, 3, 3, padding=1, bias=False), (2, 7, 7)),
    (nn.Conv2d(2, 4, 3, padding=2, dilation=2, stride=2, groups=2), (2, 9, 9)),
    (nn.Conv2d(2, 3, 3, padding="same", dilation=2), (2, 7, 7)),
    (nn.Conv2d(2, 3, 5, padding=(2, 3)), (2, 8, 8)),
    (nn.Conv3d(1, 2, 3, padding=1), (1, 4, 4, 4)),
]


def test_as_text(do, reads):
    gm = capture(net(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU()))
    reads(
        gm,
        """
        input_1: input
        _0 = conv2d(input_1, 0.weight, 0.bias, (1, 1), (1, 1), (1, 1), 1)
        _1 = relu(_0)
        return _1
        """,
    )
    reads(
        do(gm, sizes(1, 3, 5)),
        """
        input_1: input
        _0_weight = 0.weight
        _0_bias = 0.bias
        _0 = Choice(kernel_1 | kernel_3 | kernel_5)(input_1, _0_weight, _0_bias)
        _1 = relu(_0)
        return _1
        """,
    )


@pytest.mark.parametrize(("size", "weight", "padding"), [(3, "0.weight", 1), (5, "0.kernel_5.weight", 2)])
def test_one_size_replaces_the_layer(size, weight, padding, do, reads):
    reads(
        do(capture(net(nn.Conv1d(1, 2, 3, padding=1))), sizes(size)),
        f"""
        input_1: input
        _0 = conv1d(input_1, {weight}, 0.bias, (1,), ({padding},), (1,), 1)
        return _0
        """,
    )


def test_a_smaller_size_is_the_centre_of_the_weight(do, reads):
    reads(
        do(capture(net(nn.Conv1d(1, 2, 5, padding=3, bias=False))), sizes(3)),
        """
        input_1: input
        central_kernel = central_kernel(0.weight, 1)
        _0 = conv1d(input_1, central_kernel, None, (1,), (2,), (1,), 1)
        return _0
        """,
    )


@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS, ids=lambda value: type(value).__name__)
def test_alternatives_start_from_the_layer(layer, shape, do):
    layer = layer.double()
    own = layer.kernel_size[0]
    gm = do(capture(net(layer)), sizes(own - 2, own, own + 2))
    choice = gm.get_submodule("0_choice")
    assert isinstance(choice, Choice)
    assert choice.active == f"kernel_{own}"
    x = torch.randn(2, *shape, dtype=torch.float64)
    torch.testing.assert_close(gm(x), layer(x), rtol=1e-12, atol=1e-12)
    choice.active = f"kernel_{own + 2}"
    torch.testing.assert_close(gm(x), layer(x), rtol=1e-12, atol=1e-12)
    choice.active = f"kernel_{own - 2}"
    with torch.no_grad():  # what is left when the outer ring of the kernel is zero
        centre = F.pad(torch.ones([own - 2] * (layer.weight.dim() - 2)), [1, 1] * (layer.weight.dim() - 2))
        layer.weight.mul_(centre)
    torch.testing.assert_close(gm(x), layer(x), rtol=1e-12, atol=1e-12)


def test_without_the_own_size_the_first_is_active(do):
    gm = do(capture(net(nn.Conv1d(1, 2, 3, padding=1))), sizes(5, 1))
    assert gm.get_submodule("0_choice").active == "kernel_5"


def test_only_a_larger_kernel_has_a_weight_of_its_own(do):
    gm = do(capture(net(nn.Conv1d(1, 2, 3, padding=1))), sizes(1, 3, 5))
    assert list(gm.state_dict()) == ["0.weight", "0.bias", "0_choice.branches.2.weight"]
    assert gm.state_dict()["0_choice.branches.2.weight"].shape == (2, 1, 5)


def test_a_folded_layer(do):
    model = net(nn.Conv1d(1, 2, 3, padding=1), nn.BatchNorm1d(2)).eval()
    nn.init.uniform_(model[1].running_var, 0.1, 2)
    gm = do(capture(model), FoldBatchNorm(), sizes(3, 5))
    x = torch.randn(1, 1, 6, dtype=torch.float64)
    torch.testing.assert_close(gm(x), model(x), rtol=1e-12, atol=1e-12)
    gm.get_submodule("0_choice").active = "kernel_5"
    torch.testing.assert_close(gm(x), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(3, 5), (5,)])
def test_a_layer_called_twice(size, do):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(2, 2, 3, padding=1)

        def forward(self, x):
            return self.conv(torch.relu(self.conv(x)))

    model = Twice().double()
    gm = do(capture(model), sizes(*size))
    x = torch.randn(1, 2, 6, dtype=torch.float64)
    torch.testing.assert_close(gm(x), model(x), rtol=1e-12, atol=1e-12)
    assert sum(parameter.shape == (2, 2, 5) for parameter in gm.parameters()) == 1


class TwoWays(nn.Module):
    """One weight, with and without padding."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1, 3))

    def forward(self, x):
        return F.conv1d(F.conv1d(x, self.weight, padding=1), self.weight)


@pytest.mark.parametrize(
    ("model", "step", "message"),
    [
        (net(nn.Linear(2, 2)), sizes(3), "'0' is a linear; kernel_size applies to conv1d, conv2d, conv3d"),
        (
            net(nn.Conv2d(1, 1, (3, 5))),
            sizes(3),
            r"'0' has kernel \(3, 5\); kernel_size needs an odd number, the same along each axis",
        ),
        (
            net(nn.Conv1d(1, 1, 4)),
            sizes(3),
            r"'0' has kernel \(4,\); kernel_size needs an odd number, the same along each axis",
        ),
        (
            net(nn.Conv1d(1, 1, 5, padding=1)),
            sizes(1),
            r"'0' has padding \(1,\); a kernel smaller by 4 would change the output's size",
        ),
        (
            TwoWays(),
            sizes(5),
            r"'weight' is called in different ways \(weight folded twice, bias, stride, padding, ",
        ),
    ],
    ids=["linear", "not square", "even", "padding", "two ways"],
)
def test_refusals(model, step, message, do):
    with pytest.raises(PassError, match=f"supernet rule 1: {message}"):
        do(capture(model), step)


@pytest.mark.parametrize("step", [Quantize(rules=({"weight": {"bits": 4}},)), Prune(rules=({"sparsity": 0.5},))])
def test_after_another_step_on_the_weight(step, do):
    message = "the weight of '0' already has .* from an earlier step; state supernet before it"
    with pytest.raises(PassError, match=message):
        do(capture(net(nn.Conv1d(1, 1, 3))), step, sizes(5))


def test_a_name_that_matches_nothing(do):
    with pytest.raises(PolicyError, match="names: 'convolution' matches no layer"):
        do(capture(net(nn.Conv1d(1, 1, 3))), sizes(5, names=("convolution",)))
