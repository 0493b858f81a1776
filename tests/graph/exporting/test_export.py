"""Capture by export: the signature and the results of the original, other sizes, and errors that name a line."""

import copy
import dataclasses
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel
from transformers.modeling_outputs import BaseModelOutput

from fxcompress.errors import CaptureError
from fxcompress.graph import capture, text
from fxcompress.graph.inputs import Arguments
from tests.graph.same import model_of

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def exported(forward, *args, **kwargs):
    """Return the graph of a model with a linear layer and the given forward."""
    return capture(model_of(forward, fc=nn.Linear(4, 4)), Arguments(args, kwargs), way="export")


def inputs(gm):
    return [line for line in text(gm).splitlines() if ": input" in line]


def test_the_signature_is_the_original_one():
    def forward(self, x, y=None, flag=True, *rest, scale=2.0, mode="add", **more):
        y = x if y is None else y
        return self.fc(x) * scale + y + rest[0] + more["z"]

    gm = exported(forward, X, X + 1, False, X + 2, z=X + 3)
    names = ["x: input", "y: input", "flag: input = True", "rest: input"]
    assert inputs(gm) == [*names, "scale: input = 2.0", "mode: input = 'add'", "more: input"]
    model = model_of(forward, fc=gm.fc)
    model.fc = nn.Linear(4, 4)
    model.load_state_dict(gm.state_dict())
    call = Arguments((X + 4, X + 5, False, X + 6), {"z": X + 7})
    assert torch.equal(gm(*call.args, **call.kwargs), model(*call.args, **call.kwargs))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (((X, None, True), {}), "the model was captured with flag=False; state the value"),
        (((X, None, False), {"scale": 3.0}), "the model was captured with scale=2.0; state the value"),
        (((X, None, False), {"steps": 3}), "the model was captured with steps=2; state the value"),
        (((X, X, False), {}), "the model was captured with y=None; state the value"),
        (((X, None, False), {"z": X}), r"captured with \[\] in more, and is called with \['z'\]"),
    ],
)
def test_a_call_that_takes_another_path_is_refused(call, message):
    def forward(self, x, y=None, flag=True, scale=2.0, steps=2, **more):
        return self.fc(x) * scale if y is None else y

    gm = exported(forward, X, flag=False)
    assert torch.equal(gm(X, None, False, scale=2.0, steps=2), gm(X, flag=False))
    with pytest.raises(CaptureError, match=message):
        gm(*call[0], **call[1])


@dataclasses.dataclass
class Batch:
    """Tensors under names."""

    a: Any
    b: Any = None


Pair = namedtuple("Pair", ["first", "second"])


@pytest.mark.parametrize(
    "given",
    [
        (X, [X + 1, {"k": X + 2}]),
        {"a": X, "b": [X + 1]},
        [X, X],
        Pair(X, X + 1),
        Batch(X, [X + 1, None, 3, "text"]),
        BaseModelOutput(last_hidden_state=X, hidden_states=(X + 1, X + 2)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_nested_inputs_and_outputs(given):
    def forward(self, batch):
        first = batch.a if isinstance(batch, Batch) else batch[0] if not isinstance(batch, dict) else batch["a"]
        return self.fc(first), batch

    def forward_of_output(self, batch):
        return self.fc(batch.last_hidden_state), batch

    forward_of_output.__name__ = "forward"
    used = forward_of_output if isinstance(given, BaseModelOutput) else forward
    gm = copy.deepcopy(exported(used, given))
    _, returned = gm(given)
    assert type(returned) is type(given)
    assert str(returned) == str(given)


def test_outputs_of_all_kinds():
    def forward(self, x):
        y = x * 2
        nested = {"tensor": y, 0: (None, 3, "text", [x.shape[0], x.dtype])}
        return nested, Pair(y, Batch(x)), OrderedDict(a=y), x.shape, BaseModelOutput(last_hidden_state=y)

    gm = exported(forward, X)
    for x in (X, torch.randn(5, 4)):
        expected = forward(gm, x)
        found = copy.deepcopy(gm)(x)
        assert [type(one) for one in found] == [type(one) for one in expected]
        assert str(found) == str(expected)


def test_what_a_graph_cannot_take_or_return():
    with pytest.raises(CaptureError, match=r"^batch is a object, which a graph cannot take; give tensors"):
        exported(lambda self, x, batch=None: x, X, object())
    with pytest.raises(CaptureError, match=r"^the model returns a object, which a graph cannot make"):
        exported(lambda self, x: object(), X)
    with pytest.raises(CaptureError, match=r"^x is a sparse tensor, which a graph cannot take; give x.to_dense\(\)"):
        capture(model_of(lambda self, x: x.to_dense()), X.to_sparse(), way="export")


def test_a_default_that_no_code_can_hold_is_left_out():
    def forward(self, x, make=torch.zeros_like):
        return self.fc(x) + make(x)

    assert inputs(exported(forward, X)) == ["x: input"]


def test_one_tensor_given_twice_is_two_inputs():
    gm = exported(lambda self, x, y: x * 2 - y, X, X)
    assert torch.equal(gm(X, X + 1), X * 2 - (X + 1))


def test_a_lazy_model():
    gm = capture(nn.Sequential(nn.LazyLinear(3), nn.ReLU()), X, way="export")
    assert gm.get_submodule("0").weight.shape == (3, 4)


class Branches(nn.Module):
    """A branch on a value."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


class Counts(nn.Module):
    """A size that is a value."""

    def forward(self, x):
        return x[: int(x.sum())]


class Leaves(nn.Module):
    """Code that leaves torch."""

    def forward(self, x):
        return torch.from_numpy(x.numpy() * 2)


class Fails(nn.Module):
    """Code that fails while it is exported, for reasons of its own."""

    def forward(self, x):
        if torch.compiler.is_exporting():
            raise ValueError("a reason\nand more")
        return x


class Rounds(torch.autograd.Function):
    """A function with a gradient of its own."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


VALUE = "it branches on the value of a tensor, or needs it as a number"


def line_number(line):
    return [row.strip() for row in Path(__file__).read_text().splitlines()].index(line) + 1


@pytest.mark.parametrize(
    ("module", "line", "reason"),
    [
        (
            Branches(),
            "return x if x.sum() > 0 else -x",
            "it branches on the value of a tensor, or needs it as a number",
        ),
        (Counts(), "return x[: int(x.sum())]", "it branches on the value of a tensor, or needs it as a number"),
        (
            Leaves(),
            "return torch.from_numpy(x.numpy() * 2)",
            "RuntimeError: .numpy() is not supported for tensor subclasses.",
        ),
        (Fails(), 'raise ValueError("a reason\\nand more")', "ValueError: a reason"),
    ],
)
def test_errors_name_module_line_and_reason(module, line, reason, refused, capfd):
    where = f"{__file__}:{line_number(line)} ({line})"
    message = f"Sequential cannot be exported in module '1.0' at {where}: {reason}"
    model = nn.Sequential(nn.ReLU(), nn.Sequential(module))
    with refused(CaptureError, message):
        capture(model, torch.ones(3, 4), way="export")
    assert capfd.readouterr() == ("", "")


def test_an_autograd_function_is_refused():
    def forward(self, x):
        return Rounds.apply(self.fc(x))

    line = "return Rounds.apply(self.fc(x))"
    message = f"calls the autograd function Rounds at {__file__}:{line_number(line)} ({line}); a graph would lose"
    with pytest.raises(CaptureError) as caught:
        exported(forward, X)
    assert message in str(caught.value)
    assert caught.value.place == f"{__file__}:{line_number(line)}"
    assert Rounds.apply(torch.tensor(1.2)) == 1


def test_a_model_of_transformers():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    model = BertModel(BertConfig(vocab_size=30, **sizes))
    ids = torch.randint(0, 30, (2, 7))
    gm = capture(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, way="export")
    ids = torch.randint(0, 30, (3, 9))
    mask = torch.arange(9).expand(3, 9) < torch.tensor([[9], [4], [6]])
    for training in (False, True):
        results = []
        for module in (model, gm):
            torch.manual_seed(1)
            results.append(module.train(training)(input_ids=ids, attention_mask=mask.long()))
        assert type(results[0]) is type(results[1])
        assert list(results[0]) == list(results[1])
        for name in results[0]:
            torch.testing.assert_close(results[1][name], results[0][name], rtol=0, atol=0)
