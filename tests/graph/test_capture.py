"""Capture by symbolic tracing: every weight is an edge, and the graph computes what the model does."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxcompress.errors import CaptureError
from fxcompress.graph import capture, text


class Net(nn.Module):
    """A little of everything that is common."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Identity(), nn.ReLU())
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = x + self.block(x)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.fc(self.drop(x))


def test_a_network(reads):
    gm = capture(Net(), torch.randn(2, 3, 5, 5))
    norm = "BatchNorm2d(4, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)"
    reads(gm, f"""
        x: input
        conv1 = conv2d(x, conv1.weight, None, (1, 1), (1, 1), (1, 1), 1)
        bn1 = {norm}(conv1)
        relu = relu(bn1)
        block_0 = conv2d(relu, block.0.weight, block.0.bias, (1, 1), (1, 1), (1, 1), 1)
        block_2 = relu(block_0)
        add = add(relu, block_2)
        adaptive_avg_pool2d = adaptive_avg_pool2d(add, (1, 1))
        flatten = flatten(adaptive_avg_pool2d, 1, -1)
        drop = Dropout(p=0.5, inplace=False)(flatten)
        fc = linear(drop, fc.weight, fc.bias)
        return fc
        """)  # fmt: skip


def test_the_model_is_not_changed():
    net = Net()
    net.bn1.eval()
    before = copy.deepcopy(net.state_dict())
    attributes = {name: set(vars(module)) for name, module in net.named_modules()}
    gm = capture(net, torch.randn(2, 3, 5, 5))
    gm.fc.weight.data.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert attributes == {name: set(vars(module)) for name, module in net.named_modules()}
    assert net.training
    assert not net.bn1.training
    assert net.relu.inplace
    assert torch.is_grad_enabled()


def test_modes_are_those_of_the_model():
    net = Net()
    net.bn1.eval()
    gm = capture(net, torch.randn(2, 3, 5, 5))
    assert (gm.training, gm.drop.training, gm.bn1.training) == (True, True, False)
    assert not any(module.training for module in capture(net.eval()).modules())


def test_the_result_lives_like_the_original():
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(2, 3, 5, 5)
    expected = net(x)
    gm = capture(net, x)
    torch.testing.assert_close(gm(x), expected)
    torch.testing.assert_close(copy.deepcopy(gm)(x), expected)
    torch.testing.assert_close(torch.compile(gm, fullgraph=True, backend="eager")(x), expected)
    double = copy.deepcopy(gm).to(torch.float64)
    torch.testing.assert_close(double(x.double()), copy.deepcopy(net).double()(x.double()))
    other = Net().eval()
    gm.load_state_dict(other.state_dict())
    torch.testing.assert_close(gm(x), other(x))
    other.load_state_dict(gm.state_dict())
    gm.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in gm.parameters())


def test_a_captured_graph_is_copied():
    gm = capture(Net())
    again = capture(gm, torch.randn(2, 3, 5, 5))
    assert text(again) == text(gm)
    assert again.fc.weight is not gm.fc.weight


def test_a_compiled_model_is_the_model_in_it():
    assert text(capture(torch.compile(Net(), backend="eager"))) == text(capture(Net()))


def test_shared_weights_of_a_whole_model(model):
    outer = model(lambda self, x: self.a(x) + self.b(x), a=nn.Linear(2, 2), b=nn.Sequential(nn.Linear(2, 2)))
    x = torch.randn(3, 2)
    torch.testing.assert_close(capture(outer, x)(x), outer(x))


@pytest.mark.parametrize(
    ("value", "kind"),
    [(lambda x: x, "function"), (Net, "the class Net"), (None, "NoneType")],
)
def test_what_is_not_a_model(value, kind):
    with pytest.raises(CaptureError, match=f"^a model is a torch.nn.Module in Python, not {kind}$"):
        capture(value)


def test_a_model_that_cannot_be_copied(model):
    net = model(lambda self, x: x)
    net.lock = (value for value in ())
    with pytest.raises(CaptureError, match=r"^Model cannot be copied: cannot pickle 'generator' object$"):
        capture(net)


def test_a_forward_that_stands_on_the_object_alone():
    net = Net()
    net.forward = lambda x: x
    with pytest.raises(
        CaptureError, match=r"^Net has a forward that was set on this one object; define it in a class"
    ):
        capture(net)


def test_a_branch_on_a_value_names_module_and_line(model):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x

    inner = model(forward)
    line = forward.__code__.co_firstlineno + 1
    with pytest.raises(CaptureError) as caught:
        capture(model(lambda self, x: self.deep[0](x), deep=nn.Sequential(inner)), way="symbolic")
    assert str(caught.value) == (
        f"Model cannot be traced in module 'deep.0' at {__file__}:{line} (if x.sum() > 0:): "
        "symbolically traced variables cannot be used as inputs to control flow"
    )


def test_example_inputs_that_the_model_does_not_take():
    with pytest.raises(
        CaptureError, match=r"^Net does not run on the example inputs: Given groups=1, weight of size"
    ):
        capture(Net(), torch.randn(2, 4, 5, 5))


def test_outputs_are_compared_in_their_own_size(model):
    calls = []

    def forward(self, x):
        calls.append(x)
        return x * 1e-9 * len(calls)

    with pytest.raises(CaptureError, match=r"output 0 differs by 1e-09 where its largest value is 1e-09$"):
        capture(model(forward), torch.ones(3), way="symbolic")


def test_a_required_keyword_behind_an_optional_argument(model):
    def forward(self, x, scale=2.0, *, mask, flag=False):
        return x * scale * mask + flag

    net, x = model(forward), torch.randn(2, 3)
    gm = capture(net, {"x": x, "mask": torch.ones(3)})
    torch.testing.assert_close(gm(x, mask=torch.zeros(3), scale=5.0), net(x, mask=torch.zeros(3), scale=5.0))
    torch.testing.assert_close(gm(x, mask=torch.ones(3)), net(x, mask=torch.ones(3)))


def test_buffers_keep_what_checking_would_change(model):
    def forward(self, x):
        self.count += 1
        return x * self.count

    net = model(forward, count=torch.zeros(()))
    gm = capture(net, torch.ones(2))
    assert gm.count == net.count == 0
    assert [gm(torch.ones(1)).item() for _ in range(3)] == [1, 2, 3]
    assert gm.state_dict()["count"] == 3


def test_a_buffer_that_is_replaced(model, refused):
    def forward(self, x):
        self.mean = self.mean * 0.9 + x.mean() * 0.1
        return x - self.mean

    message = (
        "forward of 'norm' assigns a new value to its buffer 'mean', which a graph cannot; change it in place, for "
        "example with self.mean.copy_(value)"
    )
    net = model(lambda self, x: self.norm(x), norm=model(forward, mean=torch.zeros(())))
    with refused(CaptureError, message):
        capture(net, torch.ones(2), way="symbolic")
