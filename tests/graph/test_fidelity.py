"""What every way of capture must keep: outputs, gradients, train mode, arguments, results, what torch does to it."""

import copy
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

from fxcompress.errors import CaptureError
from fxcompress.graph import capture, layers
from fxcompress.graph.coverage import coverage

WAYS = ("symbolic", "export", "islands")


class Block(nn.Module):
    """A residual block with dropout as a function and an activation in place."""

    def __init__(self, channels):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout2d(0.2)

    def forward(self, x):
        out = self.drop(self.relu(self.norm1(self.conv1(x))))
        return self.relu(self.norm2(self.conv2(F.dropout(out, 0.1, self.training))) + x)


class Images(nn.Module):
    """A small residual network."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.blocks, self.pool = nn.Sequential(Block(8), Block(8)), nn.MaxPool2d(2)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.pool(self.blocks(self.stem(x)))
        return self.head(x.mean((2, 3)))


class Tokens(nn.Module):
    """A small transformer decoder of one's own making, on batches and lengths of any size."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(20, 16), nn.LayerNorm(16)
        self.qkv, self.out, self.drop = nn.Linear(16, 48), nn.Linear(16, 16), nn.Dropout(0.1)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, ids):
        x = self.embed(ids)
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (4, 12)).transpose(1, 2).chunk(3, -1)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.drop(self.out(attended.transpose(1, 2).flatten(2)))
        return F.linear(x + self.mlp(x), self.embed.weight)


def images(batch=2, size=16):
    return torch.randn(batch, 3, size, size)


def tokens(batch=2, length=7):
    return torch.randint(0, 20, (batch, length))


CASES = pytest.mark.parametrize(
    ("model", "example", "others"),
    [
        pytest.param(Images, images(), [images(), images(5), images(1)], id="images"),
        pytest.param(Images, images(1), [images(1), images(4)], id="images-from-one"),
        pytest.param(Tokens, tokens(), [tokens(), tokens(5), tokens(3, 11), tokens(1, 2)], id="tokens"),
    ],
)
EVERY_WAY = pytest.mark.parametrize("way", WAYS)


def both(model, example, way):
    """A model with some history of batch norm, in eval mode, and its capture."""
    torch.manual_seed(0)
    original = model().train()
    with torch.no_grad():
        original(example if example.shape[0] > 1 else torch.cat([example, example + 0.5]))
    original.eval()
    return original, capture(original, example, way=way)


@EVERY_WAY
@CASES
def test_equal_outputs_on_other_inputs(model, example, others, way):
    original, gm = both(model, example, way)
    for other in others:
        assert torch.equal(gm(other), original(other))


@EVERY_WAY
@CASES
def test_equal_gradients(model, example, others, way):
    original, gm = both(model, example, way)
    for module in (original, gm):
        module(others[-1]).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in gm.named_parameters()}
    for name, parameter in original.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=0, atol=0)


@EVERY_WAY
@CASES
def test_a_step_in_train_mode(model, example, others, way):
    original, gm = both(model, example, way)
    for module in (original, gm):
        module.train()
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        module(others[1]).square().mean().backward()
        optimizer.step()
    state = gm.state_dict()
    assert state.keys() == original.state_dict().keys()
    for name, value in original.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=0)
    assert not torch.equal(gm(others[1]), gm.eval()(others[1]))


@CASES
def test_the_same_layers_in_every_way(model, example, others):
    seen = [{layer.name: layer.kind for layer in layers(both(model, example, way)[1])} for way in WAYS]
    weights = [{name for name, kind in names.items() if kind != "add"} for names in seen]
    assert weights[0] == weights[1] >= weights[2]
    assert seen[0] == seen[1]


@EVERY_WAY
@CASES
def test_what_torch_does_to_models(model, example, others, way):
    original, gm = both(model, example, way)
    twin = copy.deepcopy(gm)
    with torch.no_grad():
        for parameter in gm.parameters():
            parameter.zero_()
    other = others[1]
    assert torch.equal(twin(other), original(other))
    assert coverage(twin) == coverage(gm)
    compiled = torch.compile(twin, backend="eager")
    assert torch.equal(compiled(other), original(other))
    as_double = copy.deepcopy(twin).double()
    wide = other.double() if other.is_floating_point() else other
    torch.testing.assert_close(as_double(wide), copy.deepcopy(original).double()(wide), rtol=0, atol=0)
    half = copy.deepcopy(twin).to(torch.bfloat16)
    narrow = other.bfloat16() if other.is_floating_point() else other
    torch.testing.assert_close(half(narrow), copy.deepcopy(original).bfloat16()(narrow), rtol=0, atol=0)
    assert all(tensor.is_meta for tensor in (*twin.to("meta").parameters(), *twin.buffers()))


class Point(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


@dataclass
class Pair:
    left: torch.Tensor
    right: torch.Tensor


class Containers(nn.Module):
    """Takes and gives everything that holds tensors."""

    def __init__(self, result):
        super().__init__()
        self.a, self.b, self.result = nn.Linear(4, 4), nn.Linear(4, 4), result

    def forward(self, x, extra=None, *, scale=None, sign=True):
        y = self.a(x["left"]) + self.b(x["right"][0])
        if extra is not None:
            y = y + extra
        if scale is not None:
            y = y * scale
        return self.result(y if sign else -y, x["right"][1])


RESULTS = {
    "dict": lambda y, z: {"y": y, "both": [y, (z, None)]},
    "tuple": lambda y, z: (y, z, 3),
    "namedtuple": Point,
    "dataclass": Pair,
}


@EVERY_WAY
@pytest.mark.parametrize("kind", RESULTS)
@pytest.mark.parametrize("given", [{}, {"extra": torch.ones(4)}, {"scale": torch.tensor(2.0), "sign": False}])
def test_arguments_and_results(kind, given, way):
    torch.manual_seed(0)
    original = Containers(RESULTS[kind]).eval()

    def call(batch):
        left, right = torch.randn(batch, 4), [torch.randn(batch, 4), torch.randn(batch)]
        return {"x": {"left": left, "right": right}} | given

    gm = capture(original, call(2), way=way)
    inputs = call(3)
    expected, found = original(**inputs), gm(**inputs)
    if kind == "dataclass":
        expected, found = vars(expected), vars(found)
    assert pytree.tree_structure(found) == pytree.tree_structure(expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("way", ["symbolic", "export"])
def test_another_path_is_refused(way):
    original = Containers(RESULTS["tuple"]).eval()
    x = {"left": torch.randn(2, 4), "right": [torch.randn(2, 4), torch.randn(2)]}
    gm = capture(original, {"x": x}, way=way)
    with pytest.raises(CaptureError, match="the model was captured with sign=True"):
        gm(x, sign=False)
    with pytest.raises(CaptureError, match="the model was captured with extra=None"):
        gm(x, torch.ones(4))


def test_islands_take_any_path():
    original = Containers(RESULTS["tuple"]).eval()
    x = {"left": torch.randn(2, 4), "right": [torch.randn(2, 4), torch.randn(2)]}
    gm = capture(original, {"x": x}, way="islands")
    assert torch.equal(gm(x, torch.ones(4), sign=False)[0], original(x, torch.ones(4), sign=False)[0])
