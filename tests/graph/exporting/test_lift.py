"""Lifting of exported programs: the same text as tracing, and the model's own parts in their places."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxcompress.errors import CaptureError
from fxcompress.graph import capture, text
from tests.graph.exporting.exported import IMAGE, TOKENS, X, exported, lines
from tests.graph.same import model_of


class Residual(nn.Module):
    """Two branches and their sum, with what convolutional networks have in them."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding="same", bias=False), nn.BatchNorm2d(4), nn.ReLU(True))
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.BatchNorm2d(4), nn.Hardswish(True))
        self.up, self.pool, self.drop = nn.ConvTranspose2d(4, 4, 2, stride=2), nn.MaxPool2d(2), nn.Dropout2d(0.3)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(4, 2))

    def forward(self, x):
        x = self.stem(x)
        x = x + self.pool(self.up(self.body(x)))
        x = F.avg_pool2d(F.relu6(self.drop(x)), 2) * 0.5
        return self.head(torch.cat([x, x * 2], 1)[:, 2:6].sigmoid())


class Block(nn.Module):
    """A block of a transformer over images."""

    def __init__(self):
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(4), nn.LayerNorm(4)
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)
        self.mlp = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Dropout(0.1), nn.Linear(8, 4))
        self.token, self.drop = nn.Parameter(torch.zeros(1, 1, 4)), nn.Dropout(0.1)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).reshape(2, 5, 3, 2, 2).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.drop(self.out(y))
        x = x + self.mlp(self.norm2(x)) + self.token
        return x[:, 0].softmax(-1), x.mean(1)


@pytest.mark.parametrize(("make", "x"), [(Residual, IMAGE), (Block, TOKENS)])
def test_the_text_is_that_of_tracing(make, x):
    torch.manual_seed(0)
    model = make().eval()
    found = lines(exported(model, x))
    expected = text(capture(model, x, way="symbolic")).splitlines()
    taken_apart = ("unbind", "getitem")  # torch.export has no row for these; tracing has methods
    assert [line for line in found if not line.startswith(taken_apart)] == [
        line for line in expected if not line.startswith(taken_apart)
    ]


@pytest.mark.parametrize(
    "key",
    [
        (slice(None), 0),
        (slice(None), slice(1, None)),
        (..., 0),
        (..., slice(1, 3)),
        0,
        slice(None, 2),
        (slice(1, None, 2), slice(None), -1),
        (0, 1, 2),
        (slice(None), slice(None), slice(None, -1)),
    ],
    ids=str,
)
def test_an_index_is_the_one_in_the_code(key):
    def forward(self, x):
        return self.fc(x)[key] * 2

    model = model_of(forward, fc=nn.Linear(4, 4))
    assert lines(exported(model, TOKENS)) == text(capture(model, TOKENS, way="symbolic")).splitlines()


def test_names_of_shared_parameters():
    shared = nn.Linear(4, 4)

    def forward(self, x):
        return self.b(self.a(x)) + F.linear(x, self.a.weight)

    model = model_of(forward, a=shared, b=nn.Linear(4, 4))
    model.b.weight = shared.weight
    assert lines(exported(model, X))[1:] == [
        "a = linear(x, a.weight, a.bias)",
        "b = linear(a, b.weight, b.bias)",
        "linear = linear(x, a.weight, None)",
        "add = add(b, linear)",
        "return add",
    ]


def test_constants_follow_the_model_and_are_no_state():
    def forward(self, x):
        return x * torch.tensor([1.0, 2.0, 3.0, 4.0]) + self.table

    model = model_of(forward)
    model.table = torch.ones(4)
    gm = exported(model, X)
    assert lines(gm)[1:] == ["mul = mul(x, _tensor_constant0)", "add = add(mul, table)", "return add"]
    assert gm.double()(X.double()).dtype == torch.float64


def test_the_gradient_ends_where_the_model_ends_it():
    def forward(self, x):
        with torch.no_grad():
            x = self.body(x)
        return self.head(x), x.detach()

    gm = exported(model_of(forward, body=nn.Linear(4, 4), head=nn.Linear(4, 2)), X)
    assert lines(gm)[1:3] == ["body = linear(x, body.weight, body.bias)", "body_detach = .detach(body)"]
    assert gm.body.weight.grad is None


def test_regions_that_a_graph_cannot_hold():
    class Inner(nn.Module):
        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return x @ x.T

    with pytest.raises(CaptureError, match=r"^forward uses torch.autocast at .*test_lift.py:\d+ \(return x @ x.T\)"):
        capture(nn.Sequential(Inner()), X, way="export")


def test_autocast_that_is_switched_off():
    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return x @ self.weight

    gm = exported(model_of(forward, weight=nn.Parameter(torch.randn(4, 2))), X)
    assert lines(gm)[1] == "matmul = matmul(x, weight)"


def test_complex_numbers():
    def forward(self, x):
        return torch.view_as_real(torch.fft.fft(self.fc(x)) * torch.polar(self.size, self.size))

    exported(model_of(forward, fc=nn.Linear(4, 4), size=nn.Parameter(torch.rand(4))), X)
