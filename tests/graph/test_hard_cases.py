"""Models that are hard to capture: each computes, learns and keeps state like the original, or is refused clearly."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import fxcompress
from fxcompress.errors import CaptureError
from fxcompress.graph import capture, layers
from fxcompress.graph.coverage import coverage
from tests.graph.same import model_of, same

WAYS = ("symbolic", "export", "islands")
EVERY_WAY = pytest.mark.parametrize("way", WAYS)


def tied(storage_only):
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    if storage_only:
        b.weight.data = a.weight.data
    else:
        b.weight = a.weight
    return model_of(lambda self, x: self.b(self.a(x).relu()), a=a, b=b)


@EVERY_WAY
@pytest.mark.parametrize("storage_only", [False, True])
def test_tied_weights(way, storage_only):
    gm = same(tied(storage_only), torch.randn(2, 4), way=way)
    assert [(layer.name, layer.owner, layer.tied) for layer in layers(gm)] == [
        ("a", "a.weight", False),
        ("b", "a.weight", True),
    ]
    with torch.no_grad():
        gm.a.weight.fill_(3)
    assert gm.b.weight.eq(3).all()


@EVERY_WAY
@pytest.mark.parametrize("storage_only", [False, True])
def test_tied_weights_have_one_quantizer_and_are_saved_once(way, storage_only, tmp_path):
    original, x = tied(storage_only), torch.randn(2, 4)
    small = fxcompress.transform(original, "w8", example_inputs=x, capture=way)
    assert [name for name, _ in small.named_modules() if name.endswith("quantizer")] == ["a.weight_quantizer"]
    fxcompress.save(small, tmp_path)
    assert torch.equal(fxcompress.load(tmp_path, original, example_inputs=x)(x), small(x))


@EVERY_WAY
def test_a_layer_called_twice(way):
    original = model_of(lambda self, x: self.fc(self.fc(x).relu()) + self.fc(x), fc=nn.Linear(4, 4))
    gm = same(original, torch.randn(2, 4), way=way)
    (fc,) = [layer for layer in layers(gm) if layer.kind == "linear"]
    assert (fc.name, len(fc.calls)) == ("fc", 1 if way == "islands" else 3)
    small = fxcompress.transform(original, "w8", example_inputs=torch.randn(2, 4), capture=way)
    assert [name for name, _ in small.named_modules() if name.endswith("quantizer")] == ["fc.weight_quantizer"]


@pytest.mark.parametrize("way", ["symbolic", "export"])
def test_a_parameter_used_by_two_operators(way):
    def forward(self, ids):
        return F.linear(F.embedding(ids, self.table).relu(), self.table) * self.table.sum()

    original = model_of(forward, table=nn.Parameter(torch.randn(6, 3)))
    gm = same(original, torch.tensor([[1, 2]]), others=[torch.tensor([[5, 0], [3, 4], [1, 1]])], way=way)
    assert [(layer.kind, layer.owner) for layer in layers(gm)] == [("embedding", "table"), ("linear", "table")]


@EVERY_WAY
def test_operators_in_place(way):
    def forward(self, x):
        y = self.fc(x)
        y += 1
        y.mul_(2)
        y[:, 0] = 5.0
        return F.relu(y, inplace=True) + x

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

    Inner.forward = forward
    original = model_of(lambda self, x: self.inner(x), inner=Inner())
    if way == "symbolic":
        with pytest.raises(CaptureError, match="does not support item assignment"):
            capture(original, torch.randn(2, 4), way=way)
        return
    same(original, torch.randn(2, 4), way=way)


@EVERY_WAY
def test_buffers_that_change_in_forward(way):
    def forward(self, x):
        self.calls.add_(1)
        self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return self.fc(x - self.mean) * self.calls

    original = model_of(forward, fc=nn.Linear(4, 4), calls=torch.zeros(()), mean=torch.zeros(4))
    gm = same(original, torch.randn(2, 4), others=[torch.randn(3, 4), torch.randn(5, 4)], way=way)
    assert gm.calls == 2


ATTENTION = [
    pytest.param(lambda: model_of(lambda self, x: self.a(x, x, x)[0], a=nn.MultiheadAttention(8, 2)), id="attention"),
    pytest.param(
        lambda: model_of(
            lambda self, x: self.head(self.a(x, x, x, need_weights=False)[0]),
            a=nn.MultiheadAttention(8, 2, batch_first=True),
            head=nn.Linear(8, 3),
        ),
        id="attention-batch-first",
    ),
    pytest.param(
        lambda: model_of(
            lambda self, x: self.e(x),
            e=nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True), 2),
        ),
        id="encoder",
    ),
]


@pytest.mark.parametrize("way", ["auto", "export", "islands"])
@pytest.mark.parametrize("make", ATTENTION)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_attention_whose_fast_path_python_decides(make, way):
    torch.manual_seed(0)
    original = make()
    gm = capture(original, torch.randn(2, 5, 8), way=way)
    for x in (torch.randn(2, 5, 8), torch.randn(3, 7, 8)):
        torch.testing.assert_close(gm(x), original(x), rtol=1e-5, atol=1e-6)
        with torch.no_grad():  # here the original takes its fast path
            torch.testing.assert_close(gm(x), original(x), rtol=1e-5, atol=1e-6)
    assert coverage(gm).share == 1
    read = {layer.weight for layer in layers(gm) if layer.kind == "linear"}
    assert read == {name for name, weight in original.named_parameters() if weight.dim() > 1}


@pytest.mark.parametrize("way", ["auto", "export", "islands"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_have_their_weights_on_edges(kind, way):
    torch.manual_seed(0)
    original = model_of(
        lambda self, x: self.head(self.r(x)[0]), r=kind(4, 3, 2, batch_first=True, dropout=0.3), head=nn.Linear(3, 2)
    )
    gm = same(original, torch.randn(2, 5, 4), others=[torch.randn(2, 5, 4), torch.randn(3, 6, 4)], way=way)
    read = {str(node.target) for node in gm.graph.nodes if node.op == "get_attr"}
    assert {name for name, _ in original.named_parameters()} <= read
    assert coverage(gm).share == 1
    for module in (original, gm):
        module.train()
    x = torch.randn(4, 5, 4)
    torch.manual_seed(2)
    expected = original(x)
    torch.manual_seed(2)
    assert torch.equal(gm(x), expected)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_what_is_made_contiguous_after_a_recurrent_layer(kind):
    original = model_of(
        lambda self, x: self.r(x)[0].contiguous().view(x.shape[0], -1), r=kind(4, 3, batch_first=True)
    )
    same(original, torch.randn(2, 5, 4), others=[torch.randn(3, 6, 4)], way="export")


def test_control_flow_on_values():
    def forward(self, x):
        y = self.a(x)
        return self.b(y) if y.sum() > 0 else self.c(y)

    original = model_of(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 4))
    gm = same(original, torch.ones(2, 4), others=[torch.randn(2, 4) + sign for sign in (-3, -1, 0, 1, 3)])
    seen = coverage(gm)
    assert seen.way == "islands"
    assert {layer.name for layer in layers(gm)} >= {"a"}
    symbolic = seen.tried[0]
    assert symbolic.way == "symbolic"
    assert "test_hard_cases.py" in symbolic.reason
    assert "return self.b(y) if y.sum() > 0 else self.c(y)" in symbolic.reason


def test_loops_over_shapes():
    def forward(self, x):
        steps = []
        for step in range(x.shape[1]):
            steps.append(self.cell(x[:, step]).tanh())
        return torch.stack(steps, 1)

    same(model_of(forward, cell=nn.Linear(3, 3)), torch.randn(2, 4, 3), others=[torch.randn(5, 4, 3)])
    same(model_of(forward, cell=nn.Linear(3, 3)), torch.randn(2, 4, 3), [torch.randn(5, 9, 3)], way="islands")
    gm = capture(model_of(forward, cell=nn.Linear(3, 3)), torch.randn(2, 4, 3), way="export")
    with pytest.raises(CaptureError, match="axis 1 of x has 5 entries where the captured graph takes 4"):
        gm(torch.randn(2, 5, 3))


@EVERY_WAY
def test_checkpointing(way):
    body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    original = model_of(
        lambda self, x: self.head(checkpoint(self.body, x, use_reentrant=False)), body=body, head=nn.Linear(4, 2)
    )
    gm = same(original, torch.randn(2, 4), way=way)
    assert {layer.name for layer in layers(gm)} == {"body.0", "body.2", "head"}


@EVERY_WAY
@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrizations(norm, way):
    torch.manual_seed(0)
    original = model_of(lambda self, x: self.b(self.a(x)), a=norm(nn.Linear(4, 4)), b=nn.Linear(4, 4))
    frozen = way == "export" and norm is parametrizations.spectral_norm  # its power iteration runs in train mode only
    with pytest.warns(UserWarning, match="asks for its mode") if frozen else nullcontext():
        same(original, torch.randn(2, 4), way=way)
