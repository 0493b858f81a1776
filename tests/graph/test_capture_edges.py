"""Captures at the edge: hooks, lazy and meta models, shared tensors, and what is refused with a clear error."""

import sys

import pytest
import torch
from torch import nn

import fxcompress
from fxcompress.errors import CaptureError
from fxcompress.graph import capture, layers, text
from fxcompress.graph.coverage import coverage
from fxcompress.graph.regions import regions
from tests.graph.same import model_of, same

WAYS = ("symbolic", "export", "islands")
EVERY_WAY = pytest.mark.parametrize("way", WAYS)


def doubled(module, args, result):
    return result * 2


@EVERY_WAY
def test_hooks_are_kept(way):
    original = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU())).eval()
    original[1][0].register_forward_hook(doubled)
    same(original, torch.randn(2, 4), way=way)


def test_hooks_that_only_look_are_refused_or_kept():
    seen = []
    original = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU())).eval()
    original[1][0].register_forward_hook(lambda module, args, result: seen.append(result.shape))
    with pytest.raises(CaptureError, match=r"module '1\.0' has a forward hook"):
        capture(original, torch.randn(2, 4), way="symbolic")
    gm = capture(original, torch.randn(2, 4), way="islands")
    seen.clear()
    gm(torch.randn(3, 4))
    assert seen == [(3, 4)]


@EVERY_WAY
def test_lazy_modules(way):
    original = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)).eval()
    gm = capture(original, torch.randn(2, 3, 6, 6), way=way)
    assert original[0].has_uninitialized_params()  # the model itself was not run
    assert gm(torch.randn(3, 3, 6, 6)).shape == (3, 2)
    assert [layer.name for layer in layers(gm)] == ["0", "3"]


def test_lazy_modules_without_inputs():
    with pytest.raises(CaptureError, match="example_inputs"):
        capture(nn.Sequential(nn.LazyLinear(2)))


@EVERY_WAY
def test_complex_numbers(way):
    def forward(self, x):
        spectrum = torch.fft.rfft(self.a(x)) * torch.view_as_complex(self.filter)
        return self.b(torch.fft.irfft(spectrum, n=8))

    original = model_of(forward, a=nn.Linear(8, 8), b=nn.Linear(8, 8), filter=nn.Parameter(torch.randn(5, 2)))
    same(original, torch.randn(2, 8), way=way)


@pytest.mark.parametrize("way", ["auto", *WAYS])
def test_nested_tensors_are_refused(way):
    nested = torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)], layout=torch.jagged)
    with pytest.raises(CaptureError, match="nested tensor"):
        capture(nn.Sequential(nn.Linear(4, 4)), nested, way=way)


@EVERY_WAY
def test_meta_models_are_planned_without_weights(way):
    with torch.device("meta"):
        original = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 4))
    x = torch.randn(2, 3, 8, 8, device="meta")
    gm = capture(original, x, way=way)
    assert all(parameter.is_meta for parameter in gm.parameters())
    assert coverage(gm).macs == 2 * (8 * 27 * 36 + 8 * 36 * 4)
    plan = fxcompress.plan(original, "w4", example_inputs=x, capture=way)
    assert [layer.decision for layer in plan.plan.layers] == ["W4", "W4"]


@EVERY_WAY
def test_without_a_copy_the_tensors_are_shared(way):
    original = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()).eval()
    types = [type(module) for module in original.modules()]
    gm = capture(original, torch.randn(2, 4), way=way, copy=False)
    mine, theirs = dict(gm.named_parameters()), dict(original.named_parameters())
    assert all(mine[name] is theirs[name] for name in theirs)
    assert dict(gm.named_buffers())["1.running_mean"] is original[1].running_mean
    assert [type(module) for module in original.modules()] == types
    x = torch.randn(3, 4)
    assert torch.equal(gm(x), original(x))


def test_a_model_that_is_one_batch_norm():
    with pytest.raises(CaptureError, match=r"nn\.Sequential\(model\)"):
        capture(nn.BatchNorm1d(4), torch.randn(2, 4))


def test_no_way_sees_anything():
    class Untraceable(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3))

        def forward(self, x):
            return x * self.weight if x.sum() > 0 else x

    with pytest.raises(CaptureError, match=r"symbolic: .*; export: .*; islands: ") as caught:
        capture(Untraceable(), torch.randn(2, 3))
    assert "test_capture_edges.py" in str(caught.value)


def test_text_of_islands_names_each_region():
    original = model_of(lambda self, x: self.b(x) if self.a(x).sum() > 0 else x, a=nn.Linear(2, 2), b=nn.Linear(2, 2))
    shown = text(capture(original, torch.ones(1, 2), way="islands"))
    assert "a_input: input\na = linear(a_input, a.weight, a.bias)\nreturn a" in shown


def test_a_model_that_calls_all_its_children():
    class Calling(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            for child in self._modules.values():
                x = child(x)
            return x if x.sum() < 1e9 else -x

    with pytest.raises(CaptureError, match=r"calls all of its parts.*nn\.ModuleList"):
        capture(Calling(), torch.ones(1, 2), way="islands")


def test_modules_that_are_alike_but_for_a_switch():
    class Block(nn.Module):
        def __init__(self, branches):
            super().__init__()
            self.fc, self.branches = nn.Linear(2, 2), branches

        def forward(self, x):
            y = self.fc(x).relu()
            return -y if self.branches and y.sum() > 1e9 else y

    original = model_of(lambda self, x: self.b(self.a(x)), a=Block(True), b=Block(False))
    gm = same(original, torch.randn(2, 2), way="islands")
    assert [region.path for region in regions(gm)] == ["a.fc", "b"]


@pytest.mark.parametrize("way", ["symbolic", "export", "islands"])
def test_a_module_in_two_places_has_its_first_name(way):
    shared = nn.Linear(4, 4)
    body = model_of(lambda self, x: x + self.inner(x), inner=shared)
    gm = capture(
        model_of(lambda self, x: self.first(self.body(x)), first=shared, body=body), torch.ones(2, 4), way=way
    )
    assert [layer.name for layer in layers(gm)] == ["first", "body_add"]
    assert len(layers(gm)[0].calls) == 2


@pytest.mark.parametrize("way", ["symbolic", "export"])
def test_names_do_not_depend_on_how_numbers_and_buffers_are_computed(way):
    def forward(self, x):
        self.count += 1
        return self.fc(x + 0.01 * x.numel()) / self.count + self.gain

    parts = {"fc": nn.Linear(4, 4), "count": nn.Buffer(torch.ones(())), "gain": nn.Parameter(torch.ones(4))}
    gm = capture(model_of(forward, **parts), torch.ones(2, 4), way=way)
    assert [layer.name for layer in layers(gm)] == ["fc", "add_1"]


def test_an_error_of_torch_in_one_way_leaves_the_others(monkeypatch):
    def broken(*args):
        raise AttributeError("no overload")

    monkeypatch.setattr(sys.modules["fxcompress.graph.capture"], "trace", broken)
    seen = coverage(capture(model_of(lambda self, x: self.fc(x), fc=nn.Linear(4, 4)), torch.ones(2, 4)))
    assert (seen.way, seen.tried[0].reason) == ("export", "AttributeError('no overload')")
