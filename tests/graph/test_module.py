"""The captured module: the state of the original under its own names, tied, unused, moved, copied and compiled."""

import copy

import pytest
import torch
from torch import nn

from fxcompress.errors import CaptureError
from fxcompress.graph import capture, layers
from fxcompress.graph.module import Holder


class Stateful(nn.Module):
    """Every kind of state that a module can hold."""

    def __init__(self):
        super().__init__()
        self.fc, self.unused, self.empty = nn.Linear(2, 2), nn.Sequential(nn.Linear(3, 3)), None
        self.bias = nn.Parameter(torch.ones(2))
        self.register_buffer("shift", torch.ones(2))
        self.register_buffer("scale", torch.ones(2), persistent=False)
        self.register_buffer("nothing", None)
        self.register_parameter("no_weight", None)
        self.constant = torch.full((2,), 3.0)
        self.factor = 2

    def forward(self, x):
        return self.fc(x * self.factor + self.shift) * self.scale + self.constant + self.bias + torch.ones(2)


class Tied(nn.Module):
    """A classifier with the weight of the embedding, and one block under two names."""

    def __init__(self):
        super().__init__()
        self.embed, self.block, self.out = nn.Embedding(5, 3), nn.Linear(3, 3), nn.Linear(3, 5, bias=False)
        self.out.weight = self.embed.weight
        self.again = self.block

    def forward(self, x):
        return self.out(self.again(self.block(self.embed(x))))


def names(module):
    return list(module.state_dict()), [name for name, _ in module.named_parameters()]


def test_state_keeps_its_names_and_order(same):
    model = Stateful()
    gm = same(model, torch.randn(3, 2))
    assert names(gm) == names(model)
    assert "scale" not in gm.state_dict()
    assert {"scale", "shift"} < {name for name, _ in gm.named_buffers()}
    assert type(gm.get_submodule("unused.0")) is Holder


def test_the_class_keeps_its_name():
    assert type(capture(Stateful())).__name__ == "Stateful"


COPIES = {
    "deepcopy": copy.deepcopy,
    "twice": lambda gm: copy.deepcopy(copy.deepcopy(gm)),
    "double": lambda gm: gm.double(),
    "to": lambda gm: gm.to(torch.float64),
    "cpu": lambda gm: gm.cpu(),
}


@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_copies(change):
    model = Stateful()
    gm = change(capture(model))
    assert names(gm) == names(model)
    x = torch.ones(1, 2, dtype=gm.bias.dtype)
    torch.testing.assert_close(gm(x), model(torch.ones(1, 2)).to(x.dtype))
    assert gm(x).dtype == x.dtype


@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_ties_survive(change):
    gm = change(capture(Tied(), torch.tensor([1, 2])))
    assert gm.out.weight is gm.embed.weight
    assert gm.again is gm.block
    assert names(gm) == names(Tied())


def test_ties_survive_loading():
    model = Tied()
    gm = capture(Tied())
    gm.load_state_dict(model.state_dict())
    x = torch.tensor([0, 4])
    assert torch.equal(gm(x), model(x))
    with torch.no_grad():
        gm.embed.weight.zero_()
    assert gm.out.weight.abs().sum() == 0


def test_ties_in_train_mode(same):
    gm = same(Tied(), torch.tensor([1, 2, 2]))
    assert gm.out.weight.grad is gm.embed.weight.grad


def test_layers_of_tied_weights():
    found = [
        (layer.name, layer.weight, layer.owner, layer.tied, len(layer.calls)) for layer in layers(capture(Tied()))
    ]
    assert found == [
        ("embed", "embed.weight", "embed.weight", False, 1),
        ("block", "block.weight", "block.weight", False, 2),
        ("out", "out.weight", "embed.weight", True, 1),
    ]


@pytest.mark.parametrize(
    ("view", "tied"),
    [(lambda weight: weight, True), (lambda weight: weight.t(), False), (lambda weight: weight[:1], False)],
)
def test_a_weight_in_the_memory_of_another(view, tied):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    model[1].weight = nn.Parameter(view(model[0].weight.detach()))
    gm = capture(model)
    assert [layer.tied for layer in layers(gm)] == [False, tied]
    with torch.no_grad():
        gm.get_submodule("0").weight.zero_()
    assert (gm.get_submodule("1").weight.abs().sum() == 0) == tied


def test_a_state_dict_goes_both_ways():
    model, other = Stateful(), Stateful()
    gm = capture(model)
    assert gm.load_state_dict(other.state_dict()) == model.load_state_dict(gm.state_dict())
    x = torch.randn(2, 2)
    assert torch.equal(gm(x), other(x))
    assert torch.equal(model(x), other(x))


@pytest.mark.parametrize(
    ("model", "x"),
    [(Stateful(), torch.randn(2, 2)), (Tied(), torch.tensor([1, 2])), (nn.BatchNorm1d(2), torch.randn(4, 2))],
    ids=["state", "tied", "norm"],
)
def test_torch_compile(model, x):
    model = nn.Sequential(model)
    gm = capture(model, x)
    compiled = torch.compile(gm, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=0)


class Colliding(nn.Module):
    """Names that fall together where dots become underscores, names of operators and arguments, and odd ones."""

    def __init__(self):
        super().__init__()
        self.a_b, self.a, self.a_b_1 = nn.Linear(2, 2), nn.Module(), nn.Linear(2, 2)
        self.a.b = nn.Linear(2, 2)
        self.relu, self.x, self.self = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
        self.add_module("print", nn.Linear(2, 2))
        self.add_module("1x-y", nn.Linear(2, 2))

    def forward(self, x):
        x = self.a_b_1(self.a.b(self.a_b(x)))
        x = self.self(self.x(self.relu(torch.relu(x))))
        return getattr(self, "1x-y")(self.print(x))


def test_names_that_collide(same, reads):
    gm = same(Colliding(), torch.randn(2, 2))
    reads(
        gm,
        """
        x: input
        a_b = linear(x, a_b.weight, a_b.bias)
        a_b_1 = linear(a_b, a.b.weight, a.b.bias)
        a_b_1_1 = linear(a_b_1, a_b_1.weight, a_b_1.bias)
        relu = relu(a_b_1_1)
        relu_1 = linear(relu, relu.weight, relu.bias)
        x_1 = linear(relu_1, x.weight, x.bias)
        self_ = linear(x_1, self.weight, self.bias)
        print_1 = linear(self_, print.weight, print.bias)
        _1x_y = linear(print_1, 1x-y.weight, 1x-y.bias)
        return _1x_y
        """,
    )
    assert [layer.name for layer in layers(gm)] == ["a_b", "a.b", "a_b_1", "relu", "x", "self", "print", "1x-y"]


@pytest.mark.parametrize("keyword", ["class", "return", "None"])
def test_names_that_are_keywords(keyword, refused):
    class Uses(nn.Module):
        def __init__(self, use):
            super().__init__()
            self.parts, self.use = nn.ModuleDict({keyword: nn.Linear(2, 2)}), use

        def forward(self, x):
            return self.parts[keyword](x) if self.use else x

    assert list(capture(Uses(False)).state_dict()) == [f"parts.{keyword}.weight", f"parts.{keyword}.bias"]
    message = (
        f"Uses calls one of its parts 'parts.{keyword}.weight'; torch.fx cannot write a name with a Python keyword "
        "in it; rename that part"
    )
    with refused(CaptureError, message):
        capture(Uses(True))


@pytest.mark.parametrize("name", ["graph", "code", "meta", "recompile"])
def test_names_that_a_graph_module_needs(name, refused):
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            setattr(self, name, nn.Linear(2, 2))

        def forward(self, x):
            return getattr(self, name)(x)

    message = (
        f"Holder calls one of its own parts {name!r}, a name that torch.fx.GraphModule needs for itself; rename it, "
        "or put the model into a module of its own: nn.Sequential(model)"
    )
    with refused(CaptureError, message):
        capture(Holder())
    capture(nn.Sequential(Holder()), torch.ones(1, 2))
