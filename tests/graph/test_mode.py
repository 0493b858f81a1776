"""Train and eval mode: batch norm and dropout follow it, other code that asks for it is named."""

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxcompress.graph import capture, text
from fxcompress.graph.mode import eval_mode


class Net(nn.Module):
    """Batch norm and dropout, as modules and as functions."""

    def __init__(self):
        super().__init__()
        self.fc, self.bn, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)

    def forward(self, x):
        x = self.drop(self.bn(self.fc(x)))
        x = F.dropout(x, 0.3, self.training) + F.dropout(x, p=0.2, training=self.training, inplace=False)
        return F.dropout1d(x, training=self.training)


def test_as_text(reads):
    reads(
        capture(Net()),
        """
        x: input
        fc = linear(x, fc.weight, fc.bias)
        bn = BatchNorm1d(4, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)(fc)
        drop = Dropout(p=0.5, inplace=False)(bn)
        dropout = Dropout(p=0.3, inplace=False)(drop)
        dropout_1 = Dropout(p=0.2, inplace=False)(drop)
        add = add(dropout, dropout_1)
        dropout1d = Dropout1d(p=0.5, inplace=False)(add)
        return dropout1d
        """,
    )


def test_values_gradients_and_running_statistics(same):
    gm = same(Net(), torch.randn(8, 4))
    assert gm.bn.num_batches_tracked == 1


@pytest.mark.parametrize("function", [F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout])
def test_functional_dropouts(function, same):
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            return function(self.fc(x), 0.5, self.training)

    x = torch.randn(2, 4, 3, 3, 3) if function is F.dropout3d else torch.randn(2, 4, 3, 3)
    gm = same(Dropping(), x)
    assert [node.op for node in gm.graph.nodes if "dropout" in node.name] == ["call_module"]


def test_dropout_that_ignores_the_mode(same, reads):
    class Noise(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x):
            return F.dropout(self.fc(x), p=0.5)

    reads(
        same(Noise(), torch.randn(4, 2)),
        """
        x: input
        fc = linear(x, fc.weight, fc.bias)
        dropout = dropout(fc, p=0.5, training=True)
        return dropout
        """,
    )


def test_a_model_partly_in_eval_mode():
    model = Net().train()
    model.bn.eval()
    gm = capture(model, torch.randn(2, 4))
    assert [name for name, module in gm.named_modules() if not module.training] == ["bn"]
    mean = gm.bn.running_mean.clone()
    gm(torch.randn(2, 4))
    assert torch.equal(gm.bn.running_mean, mean)


def test_training_goes_the_same_way():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Flatten())
    model.append(nn.Linear(36, 2))
    gm = capture(model, torch.randn(2, 1, 5, 5))
    results = []
    for module in (model, gm):
        torch.manual_seed(1)
        optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
        for _ in range(5):
            x = torch.randn(4, 1, 5, 5)
            optimizer.zero_grad()
            F.cross_entropy(module(x), torch.arange(4) % 2).backward()
            optimizer.step()
        results.append(copy.deepcopy(dict(module.state_dict())))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def test_the_gradient_ends_where_the_model_ends_it(same, reads):
    class Probe(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            with torch.no_grad():
                x = self.body(x)
                size = x.shape[0]
            return self.head(x).view(size, 2), x

    gm = same(Probe(), torch.randn(3, 2))
    reads(
        gm,
        """
        x: input
        body = linear(x, body.weight, body.bias)
        body_detach = .detach(body)
        getattr_1 = getattr(body, 'shape')
        getitem = getitem(getattr_1, 0)
        head = linear(body_detach, head.weight, head.bias)
        view = view(head, (getitem, 2))
        return (view, body_detach)
        """,
    )
    assert gm.body.weight.grad is None
    assert gm.head.weight.grad is not None


def test_a_view_keeps_its_gradient_though_it_is_first_read_where_there_is_none(same):
    class Probe(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(2, 2)

        def forward(self, x):
            turned = self.body(x).mT
            with torch.no_grad():
                doubled = turned * 2
            return torch.cat([turned, doubled])

    gm = same(Probe(), torch.randn(2, 2))
    assert gm.body.weight.grad is not None


def test_capture_under_no_grad_changes_nothing(same):
    with torch.no_grad():
        gm = capture(nn.Sequential(nn.Linear(2, 2)))
    assert gm(torch.ones(2)).requires_grad


class Asks(nn.Module):
    """A model whose forward branches on its mode."""

    def forward(self, x):
        return -x if self.training else x


def test_code_that_asks_for_the_mode_is_named():
    line = inspect.getsourcelines(Asks.forward)[1] + 1
    with pytest.warns(UserWarning, match="asks for its mode") as warned:
        gm = capture(nn.Sequential(Asks()).train(), torch.ones(2))
    message = (
        f"Sequential asks for its mode at {__file__}:{line} (return -x if self.training else x): "
        "its graph holds what eval mode does"
    )
    assert [str(warning.message) for warning in warned] == [message]
    assert warned[0].filename == __file__
    assert gm(torch.ones(2)).tolist() == [1, 1]


class Norm(nn.Module):
    """A batch norm by hand."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("var", torch.ones(2))

    def forward(self, x):
        return self.function(x, self.mean, self.var, self.training)


def test_a_function_that_takes_the_mode(same):
    gm = same(Norm(lambda x, mean, var, mode: F.batch_norm(x, mean, var, training=mode)), torch.randn(4, 2))
    assert gm.mean.tolist() != [0, 0]
    assert "batch_norm = FollowsMode(batch_norm)(x, mean, var, weight=None, " in text(gm)


def test_a_function_in_c_takes_only_a_bool():
    model = Norm(lambda x, mean, var, mode: torch.batch_norm(x, None, None, mean, var, mode, 0.1, 1e-5, False))
    with pytest.warns(
        UserWarning, match=r"^Norm asks for its mode at .*test_mode.py:\d+ \(model = Norm\(lambda x, .*"
    ):
        gm = capture(model, torch.randn(4, 2))
    assert "batch_norm(x, None, None, mean, var, False, 0.1, 1e-05, False)" in text(gm)


def test_eval_mode_ends_with_its_block():
    model = nn.Sequential(nn.Dropout(), nn.Dropout()).train()
    model[0].eval()
    with eval_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, False, True]
