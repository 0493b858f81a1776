"""Lifting of exported programs: the same text as tracing, live in train mode, every tensor a value of its own."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

from fxcompress.errors import CaptureError
from fxcompress.graph import capture, text
from tests.graph.same import model_of

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))


def lines(gm):
    """Return the text of a graph without the check of sizes, which tracing does not need."""
    return [line for line in text(gm).splitlines() if not line.startswith("expect_sizes")]


def computed(module, x, training):
    """Return what a module computes with one random seed, and the gradients and buffers that it has then."""
    module.train(training).zero_grad()
    torch.manual_seed(0)
    results = [leaf for leaf in pytree.tree_leaves(module(x.clone())) if isinstance(leaf, torch.Tensor)]
    differentiable = [result.abs().sum() for result in results if result.requires_grad]
    if differentiable:
        torch.stack(differentiable).sum().backward()
    return results, {name: one.grad for name, one in module.named_parameters()}, dict(module.named_buffers())


def exported(model, example, others=(), modes=(False, True)):
    """Capture by export, and compare values, gradients and buffers in both modes, also on other inputs."""
    gm = capture(model.eval(), example, way="export")
    assert list(gm.state_dict()) == list(model.state_dict())
    for x in (example, *others):
        for training in modes:
            found, expected = (computed(module, x, training) for module in (gm, model))
            torch.testing.assert_close(found[:2], expected[:2], rtol=0, atol=0)
            for name, buffer in expected[2].items():
                torch.testing.assert_close(found[2][name], buffer, rtol=0, atol=0)
    return gm


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


def test_memory_that_is_written_into():
    def forward(self, x):
        y = self.fc(x)
        column, rows = y[:, 1], y.t()
        y[:, 2:] = 0
        y[0] += 1
        rows[2].mul_(3)
        y.view(-1)[1:3] = x[0, 0]
        y.unsqueeze(0).squeeze(0).transpose(0, 1).add_(column.clone())
        y[y > 1] = 5.0
        index = torch.arange(3)
        index += 1
        return y, column, rows, index

    gm = exported(model_of(forward, fc=nn.Linear(4, 3)), X)
    assert not [node for node in gm.graph.nodes if str(node.target).endswith("_") and node.op != "get_attr"]
    gm = exported(model_of(lambda self, x: (x.relu_(), x + 1)), X)
    assert lines(gm) == ["x: input", "relu = relu(x)", "add = add(relu, 1)", "return (relu, add)"]


def test_a_view_that_cannot_be_written_through():
    def forward(self, x):
        y = self.fc(x)
        y.diagonal().mul_(2)
        return y

    message = r"changes in place what aten.diagonal.default returns at .*test_lift.py:\d+ \(y.diagonal\(\).mul_"
    with pytest.raises(CaptureError, match=message):
        capture(model_of(forward, fc=nn.Linear(4, 4)), X, way="export")


def test_a_sum_that_is_written_into_keeps_its_precision():
    def forward(self, x):
        y = x.bfloat16()
        y += x
        return y

    assert exported(model_of(forward), X)(X).dtype == torch.bfloat16


def test_buffers_that_forward_changes():
    def forward(self, x):
        self.steps.add_(1)
        self.table[0].copy_(x.detach().mean(0))
        self.count = self.count + 2
        return self.fc(x) * self.count + self.table.sum()

    parts = {"steps": torch.zeros(()), "table": torch.zeros(2, 4), "count": torch.ones(())}
    gm = exported(model_of(forward, fc=nn.Linear(4, 4), **parts), X)
    assert (gm.steps, gm.count) == (2, 5)


class BatchNormAct(nn.BatchNorm2d):
    """A batch norm with dropout and an activation inside."""

    def __init__(self, channels):
        super().__init__(channels)
        self.drop, self.act = nn.Dropout(0.4), nn.ReLU(inplace=True)

    def forward(self, x):
        if self.training:
            self.num_batches_tracked.add_(1)
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum)
        return self.act(self.drop(x))


def test_a_batch_norm_that_computes_more_is_taken_apart():
    gm = exported(nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct(4)), IMAGE)
    assert type(gm.get_submodule("1")) is nn.BatchNorm2d
    assert [line.split(" = ")[0] for line in lines(gm)[1:-1]] == ["_0", "_1", "_1_drop", "_1_act"]


def test_norms_and_dropouts_of_all_kinds():
    def forward(self, x):
        x = self.norm(self.drop(self.fc(x)))
        y = self.inplace(x)
        x = F.batch_norm(x + self.alpha(y), self.mean, self.var, training=self.training)
        x = x + F.dropout(x, 0.3, self.training) + F.dropout(x, 0.3) + F.dropout(x, 0.3, False)
        return self.embedding(torch.arange(3)) + F.feature_alpha_dropout(x, 0.2, self.training)

    parts = {
        "fc": nn.Linear(4, 4),
        "norm": nn.BatchNorm1d(4, track_running_stats=False),
        "drop": nn.Dropout1d(0.3),
        "inplace": nn.Dropout(0.3, inplace=True),
        "alpha": nn.AlphaDropout(0.2),
        "embedding": nn.Embedding(5, 4, max_norm=1.0),
        "mean": torch.zeros(4),
        "var": torch.ones(4),
    }
    gm = exported(model_of(forward, **parts), X)
    kinds = [type(gm.get_submodule(node.target)).__name__ for node in gm.graph.nodes if node.op == "call_module"]
    assert sorted(kinds) == [
        *("AlphaDropout", "BatchNorm1d", "Dropout", "Dropout", "Dropout1d", "Embedding"),
        *("FeatureAlphaDropout", "FollowsMode"),
    ]


def test_what_is_read_beside_a_dropout_does_not_drop_out():
    def forward(self, x):
        x = self.fc(x)
        return x + self.drop(x) * F.dropout(x, 0.5, self.training)

    assert lines(exported(model_of(forward, fc=nn.Linear(4, 4), drop=nn.Dropout(0.5)), X))[2:] == [
        "drop = Dropout(p=0.5, inplace=False)(fc)",
        "dropout = Dropout(p=0.5, inplace=False)(fc)",
        "mul = mul(drop, dropout)",
        "add = add(fc, mul)",
        "return add",
    ]


class Attention(nn.Module):
    """Attention that chooses its rate of dropout by its mode."""

    def __init__(self, dropout):
        super().__init__()
        self.fc, self.dropout = nn.Linear(4, 4), dropout

    def forward(self, x):
        q = self.fc(x)
        return F.scaled_dot_product_attention(q, q, x, dropout_p=0.0 if not self.training else self.dropout)


def test_a_rate_of_dropout_that_follows_the_mode():
    gm = exported(Attention(0.5), TOKENS)
    assert "dropoutrate = DropoutRate(p=0.5)()" in text(gm)
    assert "dropoutrate" not in text(exported(Attention(0.0), TOKENS))


@pytest.mark.parametrize("need_weights", [False, True])
def test_attention_of_torch_drops_out_in_train_mode(need_weights):
    def forward(self, x):
        return self.attention(x, x + 1, x, need_weights=need_weights)[0]

    attention = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)
    exported(model_of(forward, attention=attention), TOKENS, others=[torch.randn(3, 7, 4)])


def test_code_that_branches_on_the_mode_is_named():
    class DropPath(nn.Module):
        def forward(self, x):
            return x * torch.rand(x.shape[0], 1).round() if self.training else x

    with pytest.warns(UserWarning, match=r"asks for its mode at .*test_lift.py:\d+ \(return x \* torch.rand"):
        exported(nn.Sequential(nn.Linear(4, 4), DropPath()), X, modes=[False])

    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.ones_like(x) * (0.3 if self.training else 0.0)

    with pytest.warns(UserWarning, match="asks for its mode at .*0.3 if self.training"):
        exported(nn.Sequential(nn.Linear(4, 4), Noise()), X, modes=[False])


def test_the_mode_in_a_function_that_takes_only_a_bool():
    def forward(self, x):
        return torch.dropout(self.drop(self.fc(x)), 0.5, self.training)

    model = model_of(forward, fc=nn.Linear(4, 4), drop=nn.Dropout(0.3))
    with pytest.warns(UserWarning, match=r"asks for its mode at .*\(return torch.dropout"):
        gm = exported(model, X, modes=[False])
    assert lines(gm)[-1] == "return drop"


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(kind):
    model = model_of(lambda self, x: None, layer=kind(4, 3, 2, batch_first=True, dropout=0.5, bidirectional=True))

    def forward(self, x):
        return self.layer(x)

    type(model).forward = forward
    gm = exported(model, TOKENS, others=[torch.randn(1, 7, 4), torch.randn(4, 2, 4)])
    name = kind.__name__.lower() + ("_tanh" if kind is nn.RNN else "")
    assert f"FollowsMode({name})" in text(gm)
    assert f"{name}(" in text(exported(kind(4, 3), TOKENS))


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


class RootMeanSquare(nn.Module):
    """A norm in single precision inside a model of any precision, with a mask of the model's lowest number."""

    def __init__(self):
        super().__init__()
        self.weight, self.fc = nn.Parameter(torch.rand(4)), nn.Linear(4, 4)

    def forward(self, x):
        kept = x.dtype
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        x = x + self.fc(self.weight * y.to(kept))
        mask = torch.zeros(4, dtype=x.dtype, device=x.device).masked_fill(
            torch.arange(4, device=x.device) > 2, torch.finfo(x.dtype).min
        )
        return torch.clamp(x + mask, min=-1e3), torch.full((2,), 0.1, dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtypes_of_the_model_follow_it_and_others_stay(dtype):
    model = RootMeanSquare().eval()
    gm = copy.deepcopy(exported(model, X)).to(dtype)
    expected = model.to(dtype)(X.to(dtype))
    assert [one.dtype for one in expected] == [dtype, torch.float32]
    torch.testing.assert_close(gm(X.to(dtype)), expected, rtol=0, atol=0)


def test_the_devices_of_the_model_follow_it():
    gm = exported(RootMeanSquare(), X).to("meta")
    assert gm(X.to("meta"))[0].device.type == "meta"


def test_lines_of_dtypes_without_a_match_stay():
    class Converts(nn.Module):
        def forward(self, x):
            if x.dtype == torch.bfloat16:
                return x.float().to(x.dtype)
            return x.to(x.dtype) * 2

    gm = exported(nn.Sequential(nn.Linear(4, 4), Converts()), X)
    assert [line for line in lines(gm) if "to.dtype" in line] == ["_1_to = to.dtype(_0, torch.float32)"]
