"""fold_batch_norm: as text, and in float64 against the batch norms of the original."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxcompress.errors import PassError
from fxcompress.graph import capture
from fxcompress.nn import Quantizer
from fxcompress.policies import FoldBatchNorm, Prune, Quantize

FOLD = FoldBatchNorm()


def random_state(model):
    """Return the model in float64 and eval mode, with batch norms as training would leave them."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.1, 3)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model.double().eval()


def norms(gm):
    return [module for module in gm.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def calls_of_norms(gm):
    return [n for n in gm.graph.nodes if n.op == "call_module" and "bn" in str(n.target)]


class Net(nn.Module):
    """A layer, its norm, and a nonlinearity."""

    def __init__(self, layer, bn):
        super().__init__()
        self.layer, self.bn = layer, bn

    def forward(self, x):
        return torch.relu(self.bn(self.layer(x)))


def test_as_text(do, reads):
    gm = capture(Net(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2)).eval())
    reads(
        gm,
        """
        x: input
        layer = conv2d(x, layer.weight, None, (1, 1), (0, 0), (1, 1), 1)
        bn = BatchNorm2d(2, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)(layer)
        relu = relu(bn)
        return relu
        """,
    )
    reads(
        do(gm, FOLD),
        """
        x: input
        layer_weight_folded = folded_weight(layer.weight, bn.weight, bn.running_var, 1e-05, 0)
        layer_bias_folded = folded_bias(None, bn.weight, bn.bias, bn.running_mean, bn.running_var, 1e-05)
        layer = conv2d(x, layer_weight_folded, layer_bias_folded, (1, 1), (0, 0), (1, 1), 1)
        relu = relu(layer)
        return relu
        """,
    )


@pytest.mark.parametrize(
    ("layer", "bn", "shape"),
    [
        (nn.Conv1d(4, 6, 3, bias=False), nn.BatchNorm1d(6), (2, 4, 5)),
        (nn.Conv2d(4, 6, 3, groups=2, stride=2), nn.BatchNorm2d(6, eps=0.3), (2, 4, 7, 7)),
        (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False), (2, 4, 5, 5)),
        (nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.BatchNorm2d(4), (2, 4, 5, 5)),
        (nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3), (2, 2, 3, 3, 3)),
        (nn.ConvTranspose1d(4, 6, 3, groups=2), nn.BatchNorm1d(6), (2, 4, 5)),
        (nn.ConvTranspose2d(6, 6, 3, groups=3, stride=2), nn.BatchNorm2d(6), (2, 6, 4, 4)),
        (nn.ConvTranspose3d(2, 3, 2), nn.BatchNorm3d(3), (2, 2, 3, 3, 3)),
        (nn.Linear(4, 6), nn.BatchNorm1d(6), (5, 4)),
        (nn.Linear(4, 6, bias=False), nn.SyncBatchNorm(6), (5, 4)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_computes_the_same(layer, bn, shape, do):
    model = random_state(Net(copy.deepcopy(layer), copy.deepcopy(bn)))
    gm = do(capture(model), FOLD)
    assert not calls_of_norms(gm)
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(gm(x), model(x), rtol=1e-12, atol=1e-12)
    assert model.state_dict().keys() == gm.state_dict().keys()
    assert all(torch.equal(value, gm.state_dict()[name]) for name, value in model.state_dict().items())


def test_gradients_reach_what_was_folded(do):
    model = random_state(Net(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3)))
    gm = do(capture(model), FOLD)
    x = torch.randn(2, 2, 4, dtype=torch.float64)
    for net in (model, gm):
        net(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gm.get_parameter(name).grad, parameter.grad, rtol=1e-10, atol=1e-10)


class Twice(nn.Module):
    """A convolution called twice, each time with a norm of its own."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn1, self.bn2 = nn.Conv1d(2, 2, 3, padding=1), nn.BatchNorm1d(2), nn.BatchNorm1d(2)

    def forward(self, x):
        return self.bn2(self.conv(F.relu(self.bn1(self.conv(x)))))


def test_a_layer_called_twice_is_folded_twice(do, reads):
    model = random_state(Twice())
    gm = do(capture(model), FOLD)
    x = torch.randn(3, 2, 5, dtype=torch.float64)
    torch.testing.assert_close(gm(x), model(x), rtol=1e-12, atol=1e-12)
    do(gm, Quantize(rules=({"weight": {"bits": 4}},)))
    reads(
        gm,
        """
        x: input
        conv_weight_folded = folded_weight(conv.weight, bn1.weight, bn1.running_var, 1e-05, 0)
        conv_weight_quantizer = Quantizer(int4, per channel)(conv_weight_folded)
        conv_bias_folded = folded_bias(conv.bias, bn1.weight, bn1.bias, bn1.running_mean, bn1.running_var, 1e-05)
        conv = conv1d(x, conv_weight_quantizer, conv_bias_folded, (1,), (1,), (1,), 1)
        relu = relu(conv)
        conv_1_weight_folded = folded_weight(conv.weight, bn2.weight, bn2.running_var, 1e-05, 0)
        conv_weight_1_quantizer = Quantizer(int4, per channel)(conv_1_weight_folded)
        conv_1_bias_folded = folded_bias(conv.bias, bn2.weight, bn2.bias, bn2.running_mean, bn2.running_var, 1e-05)
        conv_1 = conv1d(relu, conv_weight_1_quantizer, conv_1_bias_folded, (1,), (1,), (1,), 1)
        return conv_1
        """,
    )
    assert len({id(module) for module in gm.modules() if isinstance(module, Quantizer)}) == 2


class Residual(nn.Module):
    """The convolution's output is used past the norm too."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2)

    def forward(self, x):
        y = self.conv(x)
        return self.bn(y) + y


class Shared(nn.Module):
    """One norm behind two convolutions."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.bn = nn.Conv1d(2, 2, 1), nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2)

    def forward(self, x):
        return self.bn(self.conv2(self.bn(self.conv1(x))))


@pytest.mark.parametrize(
    "model",
    [
        Residual(),
        Shared(),
        Net(nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2, track_running_stats=False)),
        Net(nn.ReLU(), nn.BatchNorm1d(2)),
        Net(nn.Linear(3, 5), nn.BatchNorm1d(2)),  # normalizes the middle of three axes
    ],
    ids=["used twice", "norm shared", "no statistics", "no layer", "other axis"],
)
def test_what_cannot_be_folded_is_left_alone(model, do):
    model = random_state(model)
    gm = do(capture(model), FOLD)
    assert calls_of_norms(gm)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(gm(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("step", "what"),
    [
        (Quantize(rules=({"weight": {"bits": 4}},)), r"Quantizer\(int4, per channel\)"),
        (Prune(rules=({"sparsity": (0.0, 0.5)},)), r"Choice\(dense \| 50% sparse\)"),
    ],
)
def test_after_another_step_on_the_weight(step, what, do):
    gm = capture(Net(nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2)).eval())
    message = f"the weight of 'layer' already has {what} from an earlier step; state fold_batch_norm before it"
    with pytest.raises(PassError, match=message):
        do(gm, step, FOLD)


class Doubled(nn.BatchNorm2d):
    def forward(self, input):
        return 2 * super().forward(input)


def test_a_norm_that_computes_something_else_is_left_alone(do):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), Doubled(2)).eval()
    x = torch.randn(1, 1, 5, 5)
    assert torch.equal(do(capture(net, x), FoldBatchNorm())(x), net(x))
    hooked = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval()
    hooked[1].register_forward_hook(lambda module, args, output: output + 1)
    assert torch.equal(do(capture(hooked, x), FoldBatchNorm())(x), hooked(x))


def test_a_batch_norm_after_another_norm_is_left_alone(do):
    net = random_state(nn.Sequential(nn.LayerNorm(4), nn.BatchNorm2d(4)))
    x = torch.randn(2, 4, 4, 4, dtype=torch.float64)
    assert torch.equal(do(capture(net, x), FOLD)(x), net(x))


def test_a_folded_norm_refuses_other_axes_than_the_features(do):
    gm = do(capture(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()), FOLD)
    assert gm(torch.ones(2, 4)).shape == (2, 4)
    message = (
        "fold_batch_norm: '1' normalizes axis 1 of a tensor with 3 axes, which are not the features of the linear "
        "layer before it; take fold_batch_norm out of the policy"
    )
    with pytest.raises(PassError, match=re.escape(message)):
        gm(torch.ones(2, 4, 4))
