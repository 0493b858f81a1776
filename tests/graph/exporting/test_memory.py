"""Memory: operators in place become new values for all that share it; what changes state stays in place."""

import pytest
import torch
from torch import nn

from fxcompress.errors import CaptureError
from fxcompress.graph import capture
from tests.graph.exporting.exported import X, exported, lines
from tests.graph.same import model_of


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
        best, _ = y.topk(2, 1)
        best /= best.sum() + 9
        index = torch.arange(3)
        index += 1
        index //= torch.tensor(2)
        return y, column, rows, index, best

    gm = exported(model_of(forward, fc=nn.Linear(4, 3)), X)
    assert not [node for node in gm.graph.nodes if str(node.target).endswith("_") and node.op != "get_attr"]
    gm = exported(model_of(lambda self, x: (x.relu_(), x + 1)), X)
    assert lines(gm) == ["x: input", "relu = relu(x)", "add = add(relu, 1)", "return (relu, add)"]


@pytest.mark.parametrize("view", ["diagonal", "split"])
def test_a_view_that_cannot_be_written_through(view):
    def forward(self, x):
        y = x * 2
        part = y.diagonal() if view == "diagonal" else y.split(2, 1)[0]
        part.mul_(2)
        return y

    message = rf"^forward changes in place what {view} returns at .*test_memory.py:\d+ \(part = y.diagonal"
    with pytest.raises(CaptureError, match=message), torch.no_grad():
        capture(model_of(forward), X, way="export")


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


def test_what_torch_computes_in_place_alone_is_refused():
    def forward(self, x):
        return self.fc(x) + torch.empty(4).normal_()

    message = r"^forward calls normal_ at .*test_memory.py:\d+ \(return self.fc.*\), which torch has in place alone"
    with pytest.raises(CaptureError, match=message):
        capture(model_of(forward, fc=nn.Linear(4, 4)), X, way="export")


def test_a_complex_part_that_is_written_into():
    def forward(self, x):
        spectrum = torch.fft.rfft(self.fc(x))
        low = torch.zeros_like(spectrum)
        low[..., :2] = spectrum[..., :2]
        return torch.fft.irfft(low, n=4)

    model = model_of(forward, fc=nn.Linear(4, 4))
    with pytest.raises(CaptureError, match=r"changes in place what slice returns at .*test_memory\.py"):
        capture(model, X, way="export")
    gm = capture(model, X)
    gm(X).sum().backward()
    model(X).sum().backward()
    assert torch.equal(gm.get_parameter("fc.weight").grad, model.fc.weight.grad)
