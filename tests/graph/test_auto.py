"""What auto takes where more than one way sees as much of a model, and the count that it compares."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxcompress.errors import CaptureError
from fxcompress.graph import capture
from fxcompress.graph.counting import counted
from fxcompress.graph.coverage import coverage
from tests.graph.same import model_of


def test_auto_takes_what_follows_the_mode():
    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0))

    original = model_of(forward, qkv=nn.Linear(8, 24), out=nn.Linear(8, 8), dropout=0.1)
    gm = capture(original, torch.randn(2, 5, 8))  # no warning
    (tried,) = coverage(gm).tried
    assert (coverage(gm).way, tried.way) == ("export", "symbolic")
    assert tried.reason.startswith("sees 100.0% of the multiply-accumulates, but does what eval mode does at ")


def test_auto_keeps_one_graph_where_code_asks_for_the_mode():
    def forward(self, x):
        return self.b(self.a(x) if not self.training else -self.a(x))

    with pytest.warns(UserWarning, match="asks for its mode"):
        gm = capture(model_of(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4)), torch.randn(3, 4))
    assert coverage(gm).way == "symbolic"
    assert [one.way for one in coverage(gm).tried] == ["export"]


def test_parts_without_work_do_not_make_a_choice():
    def forward(self, x):
        self.norm(x)  # for nothing
        return x + self.gain

    gm = capture(model_of(forward, norm=nn.LayerNorm(4), gain=nn.Parameter(torch.ones(4))), torch.randn(3, 4))
    assert (coverage(gm).way, coverage(gm).share, coverage(gm).tried) == ("symbolic", 1.0, ())


def test_auto_takes_what_takes_all_sizes():
    def forward(self, x):
        x = self.a(x)
        for _ in range(len(x)):
            x = self.b(x)
        return x

    original = model_of(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    gm = capture(original, torch.randn(3, 4))
    assert coverage(gm).way == "islands"
    assert coverage(gm).tried[1].reason.endswith("but takes one size alone of axis 0 of x")
    assert gm(torch.randn(5, 4)).shape == (5, 4)
    exported = capture(original, torch.randn(3, 4), way="export")
    with pytest.raises(CaptureError, match=r'of that size, or with capture="islands" if that was by export$'):
        exported(torch.randn(5, 4))


def test_auto_keeps_a_graph_of_sizes_that_the_model_holds_itself():
    def forward(self, x):
        return self.a(x).view(3, -1, 4)[list(range(len(x)))] + self.b(self.table)

    original = model_of(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4), table=torch.ones(3, 5, 4))
    assert coverage(capture(original, torch.randn(3, 5, 4))).way in ("symbolic", "export")


def test_symbolic_that_freezes_nothing_is_taken_at_once(monkeypatch):
    module = sys.modules["fxcompress.graph.capture"]  # the package has the function of that name
    monkeypatch.setattr(module, "export", None)
    monkeypatch.setattr(module, "islands", None)
    assert coverage(capture(nn.Sequential(nn.Linear(4, 4)), torch.ones(2, 4))).way == "symbolic"


def test_a_count_of_runs_is_not_frozen_in_a_whole_graph():
    def forward(self, x):
        self.runs += 1
        return self.a(x) * self.runs

    original = model_of(forward, a=nn.Linear(4, 4), runs=0)
    x = torch.randn(2, 4)
    for way in ("symbolic", "export"):
        with pytest.raises(CaptureError, match="keeps something in its attributes that its next run reads"):
            capture(original, x, way=way)
    gm = capture(original, x)
    assert (coverage(gm).way, original.runs, gm.runs) == ("islands", 0, 0)
    assert torch.equal(gm(x), original(x))
    assert torch.equal(gm(x), original(x))


@pytest.mark.parametrize("grad", [False, True])
def test_work_inside_of_maps(grad):
    original = model_of(lambda self, x: torch.vmap(lambda t: self.a(t))(x), a=nn.Linear(4, 4))
    with torch.set_grad_enabled(grad), counted(original) as macs:
        original(torch.ones(3, 4))
    assert sum(macs.values()) == 48


def test_work_of_a_loop_of_torch():
    loop = torch.ops.higher_order.while_loop

    def forward(self, x):
        start = torch.zeros((), dtype=torch.int64)
        return loop(lambda i, t: i < 3, lambda i, t: (i + 1, self.a(t)), (start, x), ())[1]

    original = model_of(forward, a=nn.Linear(4, 4))
    with torch.no_grad(), counted(original) as macs:
        original(torch.ones(2, 4))
    assert macs["a"] == 96


def test_work_in_inference_mode():
    original = model_of(torch.inference_mode()(lambda self, x: self.a(x)), a=nn.Linear(4, 4))
    with counted(original) as macs:
        original(torch.ones(2, 4))
    assert macs["a"] == 32
