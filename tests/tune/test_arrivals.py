"""What flows into each region of a model captured by islands, against a run of the whole model for each."""

import pytest
import torch
from torch import nn

from fxcompress import capture
from fxcompress.graph.inputs import batches
from fxcompress.graph.regions import bound, regions
from fxcompress.tune.arrivals import Arrivals


def plain(x):
    return x.tanh() if x.sum() > 1e9 else x  # a branch on values: the module around cannot be traced


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        x = plain(x)
        return self.out((self.q(x) * self.k(x)).relu() + self.v(x.clone()))


class Recurrent(nn.Module):
    """Calls its cell as often as there are steps, and another layer in between."""

    def __init__(self):
        super().__init__()
        self.cell, self.between, self.last = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        x = plain(x)
        for _ in range(int(x.shape[0])):
            x = self.cell(x)
            x = self.between(x) if x.shape[0] > 2 else x
        return self.last(x)


class Once(nn.Module):
    """Its own Python catches what a module raises."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        x = plain(x)
        try:
            return self.c(self.b(self.a(x)))
        except Exception:
            return x


def whole_runs(gm, data, index):
    """Return what flows into a region in runs of the whole model, one of which is made for each region."""
    found, code = [], list(gm.functions)

    def recorded(model, *args, **kwargs):
        found.append(bound(model, regions(gm)[index], args, kwargs))
        return code[index](model, *args, **kwargs)

    with gm.calling([*code[:index], recorded, *code[index + 1 :]]), torch.no_grad():
        for x in data:
            gm(x)
    return found


@pytest.mark.parametrize(
    ("model", "sizes"),
    [(nn.Sequential(Attention(), Attention()), [3, 3]), (Recurrent(), [2, 4, 3]), (Once(), [2, 2])],
    ids=["attention", "recurrent", "catching"],
)
def test_the_same_as_in_a_whole_run_for_each(model, sizes):
    torch.manual_seed(0)
    data = [torch.randn(size, 4) for size in sizes]
    gm = capture(model, max(data, key=len), way="islands")
    arrivals = Arrivals(gm, lambda: (batch.inputs for batch in batches(gm, data)))
    for index in range(len(regions(gm))):
        found, wanted = arrivals.into(index), whole_runs(gm, data, index)
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert one.keys() == other.keys()
            assert all(torch.equal(value, other[node]) for node, value in one.items())


def test_what_reads_the_same_takes_one_run_which_ends_behind_it():
    torch.manual_seed(0)
    gm = capture(nn.Sequential(Attention(), Attention()), torch.randn(3, 4), way="islands")
    paths = [region.path for region in regions(gm)]
    assert paths == [f"{part}.{name}" for part in (0, 1) for name in ("q", "k", "v", "out")]
    data, ran = [torch.randn(3, 4)] * 2, []
    for path in paths:
        gm.get_submodule(path).register_forward_hook(lambda module, args, given, path=path: ran.append(path))
    arrivals = Arrivals(gm, lambda: (batch.inputs for batch in batches(gm, data)))
    arrivals.into(0)
    assert ran == [*paths * 2, *["0.q", "0.k"] * 2]  # counted once, then up to the first that reads something else
    ran.clear()
    arrivals.into(1)
    assert ran == []
    arrivals.into(2)
    assert ran == [*["0.q", "0.k", "0.v"] * 2]
