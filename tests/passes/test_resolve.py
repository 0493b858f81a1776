"""resolve: a Choice that is decided leaves the graph that the closed policy gives."""

import pytest
import torch
from torch import nn

from fxcompress.errors import PolicyError
from fxcompress.graph import capture, text
from fxcompress.measure.calibrate import calibrate
from fxcompress.policies import Prune, Quantize, Resolve, Supernet


class Net(nn.Module):
    """A convolution, and two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(self.conv(x)))


def test_as_text(do, reads):
    gm = do(capture(nn.Sequential(nn.Linear(2, 2))), Quantize(rules=({"weight": {"bits": (4, 8)}},)))
    reads(
        gm,
        """
        input_1: input
        _0_weight = 0.weight
        _0_weight_quantizer_choice = Choice(int4 | int8)(_0_weight)
        _0 = linear(input_1, _0_weight_quantizer_choice, 0.bias)
        return _0
        """,
    )
    reads(
        do(gm, Resolve(choose={"0.weight_quantizer_choice": "int4"})),
        """
        input_1: input
        _0_weight = 0.weight
        _0_weight_quantizer = Quantizer(int4, per channel)(_0_weight)
        _0 = linear(input_1, _0_weight_quantizer, 0.bias)
        return _0
        """,
    )


LINEAR = {"select": {"ops": ["linear"]}}


@pytest.mark.parametrize(
    ("step", "field", "options", "labels", "choice"),
    [
        (Quantize, "weight", ({"bits": 4}, {"bits": 8}), ("int4", "int8"), "a.weight_quantizer_choice"),
        (Quantize, "weight", ({"bits": 4}, {"bits": "float"}), ("int4", "float"), "a.weight_quantizer_choice"),
        (Prune, "sparsity", (0.0, 0.5), ("dense", "50% sparse"), "a.weight_mask_choice"),
    ],
)
@pytest.mark.parametrize("taken", [0, 1])
def test_reads_as_the_closed_policy(step, field, options, labels, choice, taken, do):
    open_value = {"bits": tuple(one["bits"] for one in options)} if field == "weight" else options
    opened = do(capture(Net()), step(rules=(LINEAR | {field: open_value},)))
    closed = do(capture(Net()), step(rules=(LINEAR | {field: options[taken]},)))
    assert text(do(opened, Resolve(choose={choice: labels[taken]}))) == text(closed)
    assert list(opened.state_dict()) == list(closed.state_dict())


@pytest.mark.parametrize("size", [1, 3, 5])
def test_reads_as_the_closed_policy_for_whole_operators(size, do):
    conv = {"select": {"ops": ["conv1d"]}}
    model = Net()
    opened = do(capture(model), Supernet(rules=(conv | {"kernel_size": (1, 3, 5)},)))
    closed = do(capture(model), Supernet(rules=(conv | {"kernel_size": size},)))
    assert text(do(opened, Resolve(choose={"conv_choice": f"kernel_{size}"}))) == text(closed)
    assert list(opened.state_dict()) == list(closed.state_dict())
    x = torch.randn(2, 1, 4)
    assert torch.equal(opened(x), closed(x))


def test_ranges_stay(do):
    gm = do(capture(Net()), Quantize(rules=(LINEAR | {"weight": {"bits": (4, 8)}},)))
    calibrate(gm, None)
    choice = gm.get_submodule("a.weight_quantizer_choice")
    choice.active = "int4"
    x = torch.randn(2, 1, 4)
    expected = gm(x)
    assert torch.equal(do(gm, Resolve(choose={"a.weight_quantizer_choice": "int4"}))(x), expected)


def test_a_choice_that_does_not_exist(do):
    gm = do(capture(Net()), Prune(rules=({"sparsity": (0.0, 0.5)},)))
    message = (
        r"no Choice is named 'a_mask_choice' \(did you mean 'a.weight_mask_choice'\?\); "
        "the model has: conv.weight_mask_choice, a.weight_mask_choice"
    )
    with pytest.raises(PolicyError, match=message):
        do(gm, Resolve(choose={"a_mask_choice": "dense"}))


def test_a_model_without_choices(do):
    with pytest.raises(PolicyError, match="no Choice is named 'x'; the model has no open Choice"):
        do(capture(Net()), Resolve(choose={"x": "dense"}))


def test_an_option_that_does_not_exist(do):
    gm = do(capture(Net()), Quantize(rules=({"weight": {"bits": (4, 8)}},)))
    message = r"'a.weight_quantizer_choice' has no option 'int5' \(did you mean 'int[48]'\?\); it has: int4, int8"
    with pytest.raises(PolicyError, match=message):
        do(gm, Resolve(choose={"a.weight_quantizer_choice": "int5"}))
