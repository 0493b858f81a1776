"""hessian_trace where data or loss is missing, or the loss will not do."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxcompress.errors import NotReadyError
from fxcompress.graph import capture
from fxcompress.measure.calibrate import calibrate
from fxcompress.measure.decisions import decisions
from fxcompress.measure.hessian import hessian_trace
from fxcompress.passes import apply
from fxcompress.policies import Quantize


@pytest.fixture
def gm():
    """Return the graph of a linear layer with open bits."""
    torch.manual_seed(0)
    graph = capture(nn.Sequential(nn.Linear(3, 4)))
    apply(Quantize(rules=({"weight": {"bits": (2, "float")}},)), graph)
    calibrate(graph, None)
    return graph


@pytest.fixture
def batch():
    """Return inputs and labels."""
    return torch.randn(5, 3), torch.tensor([0, 1, 2, 3, 0])


def test_half_of_the_arguments(gm, batch):
    for data, loss, missing in (
        (None, F.cross_entropy, "data"),
        ([batch], None, "loss"),
        (None, None, "data and loss"),
    ):
        message = (
            rf"search.sensitivity hessian_trace needs {missing}: pass data=loader with \(input, label\) batches and "
            r"loss=F.cross_entropy or your own loss\(output, label\)"
        )
        with pytest.raises(NotReadyError, match=message):
            hessian_trace(gm, decisions(gm), data, loss)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda output, y: output.sum(1), r"the loss of batch 0 must be a finite scalar, not tensor\(\["),
        (lambda output, y: output.sum() * torch.nan, r"the loss of batch 0 must be a finite scalar, not nan"),
        (lambda output, y: 1.0, r"the loss of batch 0 must be a finite scalar, not 1\.0"),
        (
            lambda output, y: (output.argmax(1) == y).double().mean(),
            "the loss of batch 0 cannot be differentiated: compute it from the output with torch's functions",
        ),
    ],
    ids=["vector", "nan", "number", "accuracy"],
)
def test_losses_that_will_not_do(loss, message, gm, batch):
    with pytest.raises(NotReadyError, match=message):
        hessian_trace(gm, decisions(gm), [batch], loss)


def test_a_loss_without_a_second_derivative(gm, batch):
    message = "the loss of batch 0 has no finite second derivative in '0.weight'"
    with pytest.raises(NotReadyError, match=message):
        hessian_trace(gm, decisions(gm), [batch], lambda output, y: (0 * output).square().sum().sqrt())


def test_nothing_to_decide(gm, batch):
    assert hessian_trace(gm, [], [batch], F.cross_entropy) == []


def test_no_batch(gm):
    message = "search.sensitivity hessian_trace needs data, but `data` yielded no batch"
    with pytest.raises(NotReadyError, match=message):
        hessian_trace(gm, decisions(gm), [], F.cross_entropy)
