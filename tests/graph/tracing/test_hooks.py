"""Hooks: part of the graph where they compute, kept on modules that stay, refused where they would be lost."""

import pytest
import torch
from torch import nn

from fxcompress.errors import CaptureError
from fxcompress.graph import capture, layers
from fxcompress.graph.coverage import coverage


def net():
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


def look(module, *values):
    """Return nothing."""


def shift(module, args):
    return (args[0] + 1,)


def double(module, args, result):
    return result * 2


def test_what_hooks_compute_is_traced(same, reads):
    model = net()
    model[0].register_forward_pre_hook(shift)
    model[0].register_forward_hook(double)
    reads(
        same(model, torch.randn(3, 2)),
        """
        input_1: input
        _0_add = add(input_1, 1)
        _0_linear = linear(_0_add, 0.weight, 0.bias)
        _0 = mul(_0_linear, 2)
        _1 = BatchNorm1d(2, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)(_0)
        return _1
        """,
    )


@pytest.mark.parametrize(
    ("register", "hook"),
    [
        ("register_forward_pre_hook", look),
        ("register_forward_pre_hook", shift),
        ("register_forward_hook", look),
        ("register_forward_hook", double),
        ("register_full_backward_hook", look),
        ("register_full_backward_pre_hook", look),
    ],
)
def test_modules_that_stay_keep_their_hooks(register, hook, same):
    model, calls = net(), []
    getattr(model[1], register)(lambda *args: calls.append(1) or hook(*args))
    gm = same(model, torch.randn(3, 2))
    calls.clear()
    gm(torch.randn(3, 2)).sum().backward()
    assert calls == [1]


LOST = "which its graph would lose; remove it before with the handle that registered it: handle.remove()"


@pytest.mark.parametrize(
    ("part", "register", "hook", "message"),
    [
        ("", "register_forward_pre_hook", shift, f"the model itself has a forward hook, shift, {LOST}"),
        ("", "register_forward_hook", double, f"the model itself has a forward hook, double, {LOST}"),
        ("", "register_full_backward_hook", look, f"the model itself has a backward hook, look, {LOST}"),
        ("0", "register_full_backward_hook", look, f"module '0' has a backward hook, look, {LOST}"),
        ("0", "register_full_backward_pre_hook", look, f"module '0' has a backward hook, look, {LOST}"),
        ("0", "register_forward_hook", look, f"module '0' has a forward hook that returns nothing, look, {LOST}"),
        ("0", "register_forward_pre_hook", look, f"module '0' has a forward hook that returns nothing, look, {LOST}"),
    ],
)
def test_hooks_that_would_be_lost(part, register, hook, message, refused):
    model = net()
    handle = getattr(model.get_submodule(part), register)(hook)
    with refused(CaptureError, message):
        capture(model, torch.randn(3, 2), way="symbolic")
    handle.remove()
    capture(model, torch.randn(3, 2), way="symbolic")


@pytest.mark.parametrize("register", ["register_forward_hook", "register_full_backward_hook"])
def test_hooks_of_the_model_itself_make_way_for_islands(register):
    model, calls = net(), []
    getattr(model, register)(lambda *args: calls.append(1))
    x = torch.randn(3, 2, requires_grad=True)
    gm = capture(model, x)
    assert coverage(gm).way == "islands"
    calls.clear()
    gm(x).sum().backward()
    assert calls == [1]


@pytest.mark.parametrize("register", ["register_forward_hook", "register_full_backward_hook"])
def test_hooks_of_a_region_stay(register):
    model, calls = net(), []
    getattr(model[0], register)(lambda *args: calls.append(1))
    x = torch.randn(3, 2, requires_grad=True)
    gm = capture(model, x)
    assert coverage(gm).way == "islands"
    assert [layer.name for layer in layers(gm)] == [layer.name for layer in layers(capture(net()))]
    calls.clear()
    gm(x).sum().backward()
    assert calls == [1]


@pytest.mark.parametrize("register", ["register_forward_hook", "register_full_backward_hook"])
def test_hooks_in_a_module_of_torch_stay_in_islands(register, model):
    layer, calls = nn.TransformerEncoderLayer(4, 2, 4, batch_first=True), []
    getattr(layer.linear1, register)(lambda *args: calls.append(1))
    model = model(lambda self, x: self.layer(x), layer=layer)
    x = torch.randn(2, 3, 4, requires_grad=True)
    gm = capture(model, x, way="islands")
    calls.clear()
    gm(x).sum().backward()
    assert calls == [1]


def test_the_hooks_of_the_model_are_left_alone():
    model, calls = net(), []
    model[0].register_forward_hook(lambda module, args, result: calls.append(1) or result)
    capture(model)
    calls.clear()
    model(torch.randn(3, 2))
    assert calls == [1]


def test_the_old_spectral_norm():
    model = nn.Sequential(nn.utils.spectral_norm(nn.Linear(2, 2))).eval()
    x = torch.randn(3, 2)
    with pytest.warns(UserWarning, match=r"^Sequential asks for its mode at .*spectral_norm\.py:"):
        gm = capture(model, x)
    torch.testing.assert_close(gm(x), model(x))
    assert list(gm.state_dict()) == list(model.state_dict())
