"""What depends on the mode comes back from export alive: norms, dropout, rates of dropout, recurrent layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxcompress.graph import text
from tests.graph.exporting.exported import IMAGE, TOKENS, X, exported, lines
from tests.graph.same import model_of


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

    with pytest.warns(UserWarning, match=r"asks for its mode at .*test_mode_dependent.py:\d+ \(return x"):
        exported(nn.Sequential(nn.Linear(4, 4), DropPath()), X, modes=[False])

    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.ones_like(x) * (0.3 if self.training else 0.0)

    with pytest.warns(UserWarning, match="asks for its mode at .*0.3 if self.training"):
        exported(nn.Sequential(nn.Linear(4, 4), Noise()), X, modes=[False])


def test_a_rate_for_code_that_drops_out_by_itself():
    def drop_path(x, rate):
        return x * torch.rand(x.shape[0], 1).ge(rate) if rate > 0 else x

    class Path(nn.Module):
        def forward(self, x):
            return drop_path(x, 0.5 * self.dropout if self.training else 0.0)

    path = Path()
    path.dropout = 0.5
    with pytest.warns(UserWarning, match=r"asks for its mode at .*\(return drop_path\(x, 0.5 \* self.dropout"):
        exported(nn.Sequential(nn.Linear(4, 4), path), X, modes=[False])


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
