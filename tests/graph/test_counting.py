"""Multiply-accumulates by module: beside torch's own count, and by hand for what torch does not count."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as hooks
from torch.utils.flop_counter import FlopCounterMode

from fxcompress.graph.counting import counted


class Block(nn.Module):
    """Convolutions, and a product of its own."""

    def __init__(self):
        super().__init__()
        self.conv, self.depthwise = nn.Conv2d(4, 6, 3, stride=2), nn.Conv2d(6, 6, 3, groups=6, padding=1)
        self.mix = nn.Parameter(torch.ones(3, 3))

    def forward(self, x):
        return self.depthwise(self.conv(x)) @ self.mix


class Net(nn.Module):
    """Nested modules, one that is called twice, a layer as a function, and operators that cost nothing."""

    def __init__(self):
        super().__init__()
        self.up, self.norm, self.blocks = nn.ConvTranspose2d(3, 4, 2), nn.BatchNorm2d(4), nn.ModuleList([Block()])
        self.twice, self.weight = nn.Linear(54, 54), nn.Parameter(torch.ones(2, 54))

    def forward(self, x):
        x = self.blocks[0](self.norm(self.up(x))).flatten(1)
        x = self.twice(self.twice(x).relu())
        return torch.addmm(x[:, :2], x, self.weight.t()) + F.linear(x, self.weight)


def run(model, *inputs):
    with counted(model) as macs:
        model(*inputs)
    return dict(+macs)  # those with work


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("grad", [True, False])
def test_beside_the_count_of_torch(batch, grad):
    model, x = Net().eval(), torch.ones(batch, 3, 6, 6)
    with torch.set_grad_enabled(grad):
        found = run(model, x)
        with FlopCounterMode(display=False) as counter:
            model(x)
    totals = {path: sum(counts.values()) for path, counts in counter.get_flop_counts().items()}
    assert sum(found.values()) * 2 == totals["Global"]
    for path in ("up", "blocks.0", "blocks.0.conv", "blocks.0.depthwise", "twice"):  # torch counts children as well
        inside = sum(macs for name, macs in found.items() if f"{name}.".startswith(f"{path}."))
        assert inside * 2 == totals[f"Net.{path}"]
    by_hand = {
        "up": batch * 3 * 6 * 6 * 4 * 4,  # inputs * outputs of each
        "blocks.0.conv": batch * 6 * 9 * 4 * 9,
        "blocks.0.depthwise": batch * 6 * 9 * 9,
        "blocks.0": batch * 6 * 3 * 3 * 3,
        "twice": batch * 2 * 54 * 54,
        "": batch * 2 * 2 * 54,
    }
    assert found == by_hand


@pytest.mark.parametrize("grad", [True, False])  # without, torch has one operator for a whole layer of an LSTM
@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrent_layers(kind, gates, batch_first, grad):
    model = nn.Sequential(kind(5, 7, num_layers=2, bidirectional=True, batch_first=batch_first)).eval()
    with torch.set_grad_enabled(grad):
        found = run(model, torch.ones(3, 4, 5))
    first, second = 7 * (5 + 7), 7 * (2 * 7 + 7)
    assert found == {"0": 3 * 4 * gates * 2 * (first + second)}


@pytest.mark.parametrize("grad", [True, False])
def test_scaled_dot_product_attention(grad):
    class Attends(nn.Module):
        def forward(self, query, key, value):
            return F.scaled_dot_product_attention(query, key, value)

    query, key, value = torch.ones(2, 3, 4, 8), torch.ones(2, 3, 5, 8), torch.ones(2, 3, 5, 8)
    with torch.set_grad_enabled(grad):
        found = run(Attends(), query, key, value)
    assert found == {"": 2 * 3 * (4 * 5 * 8 + 4 * 5 * 8)}  # query with key, then with value


@pytest.mark.parametrize("grad", [True, False])  # without, torch has one operator for all of it
def test_multi_head_attention(grad):
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0]

    with torch.set_grad_enabled(grad):
        found = run(Attends().eval(), torch.ones(2, 5, 8))
    assert found == {"attention": 2 * 5 * 4 * 8 * 8 + 2 * 2 * 2 * 5 * 5 * 4}  # projections; 2 heads of 4 features
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_module_under_two_names_has_its_first():
    layer = nn.Linear(2, 2)
    assert run(nn.Sequential(layer, nn.ReLU(), layer), torch.ones(1, 2)) == {"0": 8}


def test_a_module_that_the_model_does_not_have_is_its_callers():
    layer = nn.Linear(2, 3)

    class Calls(nn.Module):
        def forward(self, x):
            return layer(x)

    assert run(nn.Sequential(nn.Linear(2, 2), Calls()), torch.ones(1, 2)) == {"0": 4, "1": 6}


def installed():
    return len(hooks._global_forward_hooks) + len(hooks._global_forward_pre_hooks)


class Fails(nn.Module):
    """A product, then an error."""

    def forward(self, x):
        raise ValueError(f"no {(x @ x).shape}")


def test_an_error_that_the_model_catches():
    class Tries(nn.Module):
        def __init__(self):
            super().__init__()
            self.fails, self.fc = Fails(), nn.Linear(2, 3)

        def forward(self, x):
            try:
                return self.fails(x)
            except ValueError:
                return self.fc(x @ x @ x)

    assert run(Tries(), torch.ones(2, 2)) == {"fails": 8, "": 16, "fc": 12}


def test_an_error_leaves_no_hooks():
    before = installed()
    with pytest.raises(ValueError, match="no torch"):
        run(nn.Sequential(nn.Linear(2, 2), Fails()), torch.ones(2, 2))
    assert installed() == before
    with counted(nn.Identity()):
        assert installed() == before + 2
    assert installed() == before


def test_what_is_read_for_no_work_has_an_entry():
    model = nn.ModuleDict({"fc": nn.Linear(2, 3), "norm": nn.LayerNorm(3), "unused": nn.Linear(2, 2)})
    with counted(model) as macs:
        model["norm"](model["fc"](torch.ones(1, 2)))
    assert dict(macs) == {"fc": 6, "norm": 0}
