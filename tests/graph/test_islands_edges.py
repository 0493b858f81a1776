"""Islands at the edge: models with gradients, a memory and branches of their own."""

import pytest
import torch
from torch import nn

import fxcompress
from fxcompress.errors import CaptureError
from fxcompress.graph import capture
from fxcompress.graph.coverage import coverage
from fxcompress.graph.regions import regions
from tests.graph.same import model_of, same


def forked(x):
    """Branch on a value, which keeps a model's Python from becoming a graph."""
    return x if x.sum() < 1e9 else -x


def paths(gm):
    return [region.path for region in regions(gm)]


class Forces(nn.Module):
    """An energy and its gradient by the input."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Sequential(nn.Linear(4, 8), nn.Tanh()), nn.Linear(8, 1)

    def forward(self, x):
        x.requires_grad_(True)
        energy = forked(self.b(self.a(x)))
        (slope,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        return energy - slope


@pytest.mark.parametrize("way", ["islands", "auto"])
def test_gradients_in_forward(way):
    torch.manual_seed(0)
    gm = same(Forces().eval(), torch.randn(3, 4), way=way)
    assert paths(gm) == ["a", "b"]
    assert all(parameter.grad is not None for parameter in gm.parameters())


def test_gradients_that_forward_switches_on():
    class Switching(Forces):
        @torch.enable_grad()
        def forward(self, x):
            return super().forward(x)

    original, x = Switching().eval(), torch.randn(3, 4)
    gm = capture(original, x, way="islands")
    assert paths(gm) == ["a", "b"]
    with torch.no_grad():
        torch.testing.assert_close(gm(x), original(x), rtol=0, atol=0)


def test_gradients_that_forward_leaves_are_taken_back():
    def forward(self, x):
        x = x.clone().requires_grad_(True)
        forked(self.a(x)).sum().backward()
        return x.grad

    original = model_of(forward, a=nn.Linear(4, 2))
    gm = capture(original, torch.randn(3, 4), way="islands", copy=False)
    assert paths(gm) == ["a"]
    assert original.a.weight.grad is None


def test_a_model_that_fails_with_and_without_gradients():
    def forward(self, x):
        return torch.autograd.grad(forked(self.a(x)).sum(), x)

    with pytest.raises(CaptureError, match=r"^Model does not run on the example inputs: .*does not require grad"):
        capture(model_of(forward, a=nn.Linear(4, 2)), torch.randn(3, 4), way="islands")


class Padded(nn.Module):
    """The encoder of torch, which takes a fast path over nested tensors where nobody needs gradients."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(8, 2)

    def forward(self, x, mask):
        return forked(self.head(self.encoder(x, src_key_padding_mask=mask)))


def padded(batch, length):
    mask = torch.zeros(batch, length, dtype=torch.bool)
    mask[0, length // 2 :] = True
    return torch.randn(batch, length, 8), mask


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("given_up", [(), ("encoder",), ("encoder", "encoder.layers.0", "encoder.layers.1")])
def test_the_fast_path_of_transformer_encoders(given_up):
    torch.manual_seed(0)
    original, x = Padded().eval(), padded(2, 5)
    for path in given_up:
        part = original.get_submodule(path)
        part.__class__ = type(type(part).__name__, (type(part),), {"forward": _forked_forward(type(part))})
    gm = capture(original, x, way="islands")
    assert torch.backends.mha.get_fastpath_enabled()
    assert not set(given_up) & set(paths(gm))
    called = []
    for index in range(len(gm.functions)):
        gm.functions[index] = _noting(gm.functions[index], paths(gm)[index], called)
    x, mask = padded(3, 5)
    with torch.no_grad():
        found = gm(x, mask)
    assert set(called) == set(paths(gm))
    torch.testing.assert_close(found, original(x, mask), rtol=0, atol=1e-5)


def _forked_forward(kind):
    def forward(self, *args, **kwargs):
        return forked(kind.forward(self, *args, **kwargs))

    return forward


def _noting(function, path, called):
    def call(*args, **kwargs):
        called.append(path)
        return function(*args, **kwargs)

    return call


class Counting(nn.Module):
    """Counts its runs, and remembers what it computed."""

    def __init__(self):
        super().__init__()
        self.a, self.n, self.seen = nn.Linear(4, 4), 0, []

    def forward(self, x):
        self.n += 1
        self.last = self.a(x)
        self.seen.append(self.n)
        return forked(self.last) * self.n / len(self.seen) * self.seen[-1]


@pytest.mark.parametrize("inside", [False, True])
def test_attributes_that_forward_changes(inside):
    counting = Counting()
    original = model_of(lambda self, x: self.part(x), part=counting) if inside else counting.eval()
    gm, x = capture(original, torch.randn(2, 4)), torch.randn(3, 4)
    for part in (counting, gm.part if inside else gm):
        assert (part.n, part.seen, hasattr(part, "last")) == (0, [], False)
    for _ in range(3):
        torch.testing.assert_close(gm(x), original(x), rtol=0, atol=0)
    assert (gm.part if inside else gm).n == 3


def test_attributes_that_the_models_own_python_reads():
    class Expert(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            self.loss = x.mean()
            return self.fc(x)

    def forward(self, x):
        x = forked(self.a(x))
        return self.head(x) + self.a.loss

    original = model_of(forward, a=Expert(), head=nn.Linear(4, 4))
    assert paths(same(original, torch.randn(2, 4), way="islands")) == ["a.fc", "head"]
    original.a.loss = torch.tensor(3.0)  # now a region would leave it as it is
    assert paths(same(original, torch.randn(2, 4), way="islands")) == ["a.fc", "head"]


def test_a_count_in_a_module_that_runs_more_than_once():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.n = nn.Linear(4, 4), 0

        def forward(self, x):
            self.n += 1
            return self.fc(x) * self.n

    original = model_of(lambda self, x: forked(self.a(self.a(x))), a=Scaled())
    gm, x = capture(original, torch.randn(2, 4), way="islands"), torch.randn(3, 4)
    assert paths(gm) == ["a.fc"]
    torch.testing.assert_close(gm(x), original(x), rtol=0, atol=0)


def test_a_memory_that_cannot_be_put_back():
    class State:
        n = 0

    def forward(self, x):
        self.state.n += 1
        return forked(self.a(x)) * self.state.n

    original = model_of(forward, a=nn.Linear(4, 4), state=State())
    with pytest.raises(CaptureError, match=r"^Model does not compute the same when it is run .*output 0 differs"):
        capture(original, torch.ones(2, 4), way="islands")


def test_parts_that_are_made_in_the_first_run():
    def forward(self, x):
        if not self.made:
            self.fc, self.made = nn.Linear(x.shape[1], 2), True
        return forked(self.fc(x))

    gm = capture(model_of(forward, made=False), torch.ones(2, 4), way="islands")
    assert (paths(gm), gm.made) == (["fc"], True)


def test_a_region_that_the_models_own_python_does_not_bear():
    class Checked(nn.Linear):
        pass

    def forward(self, x):
        x = self.a(x)
        if type(self.b) is not Checked:
            raise TypeError("b is not Checked")
        return forked(self.b(x))

    original = model_of(forward, a=nn.Linear(4, 4), b=Checked(4, 4))
    with pytest.raises(CaptureError, match="b is not Checked"):
        capture(original, torch.ones(2, 4), way="islands")


def test_branches_of_torch():
    def forward(self, x):
        x = self.a(x)
        return torch.cond(x.sum() > 0, lambda t: self.b(t), lambda t: self.c(t), (x,))

    original = model_of(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 4))
    x = torch.ones(2, 4)
    with torch.no_grad():
        gm = capture(original, x)
        for sign in (1, -1):
            torch.testing.assert_close(gm(sign * x), original(sign * x), rtol=0, atol=0)
    assert coverage(gm).macs == 64
    assert "a" in paths(gm)


def test_functional_transforms():
    def forward(self, x):
        x = self.a(x)
        return torch.vmap(torch.func.jacrev(lambda t: self.b(t).tanh()))(x)

    original = model_of(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    assert paths(same(original, torch.randn(2, 4), way="islands")) == ["a"]


class Calling(nn.Module):
    """Calls all of its children."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 4)

    def forward(self, x):
        for child in self.children():
            x = child(x)
        return forked(x)


def test_a_model_that_calls_all_its_children():
    torch.manual_seed(0)
    original, x = Calling().eval(), torch.randn(2, 4)
    assert paths(same(original, x, way="islands")) == ["a", "b"]
    policy = {"steps": [{"kind": "quantize", "rules": [{"weight": {"bits": 8}, "input": {"bits": 8}}]}], "version": 1}
    gm = fxcompress.transform(original, policy, example_inputs=x, data=[(x,)], capture="islands")
    added = set(gm._modules) - {"a", "b"}
    assert added
    assert [name for name, _ in gm.named_children()] == ["a", "b"]
    expected = gm.b(gm.a(x))
    torch.testing.assert_close(gm(x), expected, rtol=0, atol=0)
    visited = []
    gm.train().apply(visited.append)
    assert all(part.training and part in visited for part in gm.modules())
    gm.double()
    assert all(tensor.dtype != torch.float32 for tensor in gm.state_dict().values())


def test_a_model_without_modules():
    original = model_of(lambda self, x: forked(x @ self.weight), weight=nn.Parameter(torch.ones(4, 4)))
    with pytest.raises(CaptureError, match=r"^Model has no modules inside it that could become graphs"):
        capture(original, torch.ones(2, 4), way="islands")
    with pytest.raises(CaptureError, match=r"symbolic: .*control flow; export: .*branches.*; islands: Model has no"):
        capture(original, torch.ones(2, 4))
