"""The comparison with the original: models that behave differently when they are traced."""

import pytest
import torch
from torch import fx, nn

from fxcompress.errors import CaptureError
from fxcompress.graph import capture
from fxcompress.graph.coverage import coverage


class Lie(nn.Module):
    """A model that does something else when it is traced."""

    def __init__(self, honest, traced):
        super().__init__()
        self.honest, self.traced = honest, traced

    def forward(self, x):
        return self.traced(x) if isinstance(x, fx.Proxy) else self.honest(x)


WRONG = "the graph of Lie does not compute what the model does: output"


@pytest.mark.parametrize(
    ("honest", "traced", "message"),
    [
        (lambda x: -x, lambda x: x, f"{WRONG} 0 differs by 4 where its largest value is 2"),
        (lambda x: (x, -x), lambda x: (x, x), f"{WRONG} 1 differs by 4 where its largest value is 2"),
        (lambda x: x, lambda x: x.double(), f"{WRONG} 0 is float64[2], not float32[2]"),
        (lambda x: x, lambda x: x[:1], f"{WRONG} 0 is float32[1], not float32[2]"),
        (lambda x: x > 1, lambda x: x > 2, f"{WRONG} 0 differs"),
        (lambda x: 3, lambda x: 4, f"{WRONG} 0 is 4, not 3"),
        (lambda x: x, lambda x: None, f"{WRONG} 0 is None, not tensor([1., 2.])"),
        (lambda x: x, lambda x: x.nothing(), None),
    ],
)
def test_a_model_that_lies(honest, traced, message, refused):
    missing = "the graph of Lie does not run on the example inputs: 'Tensor' object has no attribute 'nothing'"
    with refused(CaptureError, message or missing):
        capture(Lie(honest, traced), torch.tensor([1.0, 2.0]), way="symbolic")


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: torch.rand_like(x),  # one seed
        lambda x: x / 0,
        lambda x: x - x / 0 + x / 0,  # nan
        lambda x: torch.complex(x, x),
        lambda x: x[:0],
        lambda x: {"a": [x, None, "text", 3.0]},
    ],
)
def test_equal_outputs(compute):
    capture(Lie(compute, compute), torch.tensor([1.0, 2.0]), way="symbolic")


def test_another_structure():
    with pytest.raises(CaptureError, match=r"^the graph of Lie returns .*, the model returns .*tuple"):
        capture(Lie(lambda x: (x,), lambda x: x), torch.ones(2), way="symbolic")


def test_random_numbers_that_tracing_freezes():
    class Frozen(nn.Module):
        def forward(self, x):
            return x + torch.rand(2)

    with pytest.raises(
        CaptureError, match=r"^the graph of Frozen does not compute what the model does: output 0 differs by"
    ):
        capture(Frozen(), torch.ones(2), way="symbolic")


def test_a_difference_makes_way_for_another_way():
    model = nn.Sequential(nn.Linear(2, 2), Lie(lambda x: x + 1, lambda x: x))
    x = torch.ones(3, 2)
    gm = capture(model, x)
    torch.testing.assert_close(gm(x), model(x))
    (tried,) = coverage(gm).tried
    assert (coverage(gm).way, tried.way) == ("export", "symbolic")
    assert tried.reason.startswith("the graph of Sequential does not compute what the model does: output 0 differs")


def test_without_example_inputs_nothing_is_compared():
    capture(Lie(lambda x: -x, lambda x: x))
