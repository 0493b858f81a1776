"""Example inputs and batches: how arguments and labels are told apart, and arguments that choose a path."""

import pytest
import torch
from torch import nn

from fxcompress.errors import CaptureError, NotReadyError
from fxcompress.graph import capture
from fxcompress.graph.inputs import Arguments, Examples, as_arguments, batches, examples, one_sample, rereadable

X, Y, Z = torch.arange(4.0).view(4, 1), torch.arange(4), torch.arange(4) + 10


class One(nn.Module):
    """One required argument and two others."""

    def forward(self, x, mask=None, *, scale=1.0):
        return x * scale


class Two(nn.Module):
    """Two required arguments and another."""

    def forward(self, a, b, mask=None):
        return a + b


class Path(nn.Module):
    """Arguments of every kind, three of which choose a path."""

    def forward(self, x, other=None, add=True, *, mode="sum", scale=2.0, extra=None):
        y = x * scale
        if other is not None:
            y = y + other
        if add:
            y = y + 1
        if extra is not None:
            y = y + extra["k"][0]
        return {"y": -y if mode == "neg" else y, "nested": (x, [y, None, 3])}


@pytest.fixture
def split():
    """Return a function that gives arguments, keyword arguments and labels of one batch."""

    def run(model, batch, positional=None):
        [(inputs, target)] = batches(capture(model()), [batch], positional)
        return *inputs, target

    return run


@pytest.mark.parametrize(
    ("model", "batch", "args", "kwargs", "target"),
    [
        (One, X, (X,), {}, None),
        (One, (X,), (X,), {}, None),
        (One, (X, Y), (X,), {}, Y),
        (One, [X, Y], (X,), {}, Y),
        (One, (X, Y, Z), (X,), {}, (Y, Z)),
        (One, ((X, Y), Z), (X, Y), {}, Z),
        (One, ([X], Y, Z), (X,), {}, (Y, Z)),
        (One, ({"x": X, "mask": Y}, Z), (), {"x": X, "mask": Y}, Z),
        (One, ({"x": X},), (), {"x": X}, None),
        (One, {"x": X}, (), {"x": X}, None),
        (One, {"x": X, "labels": Y}, (), {"x": X}, Y),
        (One, {"u": Z, "x": X, "mask": Y, "v": Y}, (), {"x": X, "mask": Y}, {"u": Z, "v": Y}),
        (Two, (X, Y), (X, Y), {}, None),
        (Two, (X, Y, Z), (X, Y), {}, Z),
        (Two, ((X, Y), Z), (X, Y), {}, Z),
        (Two, ({"a": X, "b": Y}, Z), (), {"a": X, "b": Y}, Z),
    ],
)
def test_batches(model, batch, args, kwargs, target, split):
    found = split(model, batch)
    assert str(found) == str((args, kwargs, target))
    assert isinstance(found[2], type(target))


def test_the_example_inputs_say_how_many_values_are_arguments(split):
    assert split(One, (X, Y, Z), positional=2) == ((X, Y), {}, Z)


@pytest.mark.parametrize(
    ("model", "batch", "message"),
    [
        (One, "text", "a batch of data is a tensor, a tuple or a dict, not str"),
        (One, 3, "a batch of data is a tensor, a tuple or a dict, not int"),
        (One, None, "a batch of data is a tensor, a tuple or a dict, not NoneType"),
        (One, (), "a batch of data has 0 values; the model takes 1: x"),
        (Two, X, "a batch of data has 1 values; the model takes 2: a, b"),
        (Two, (X,), "a batch of data has 1 values; the model takes 2: a, b"),
        (One, {"image": X, "label": Y}, "a batch of data has image, label; the model takes x, mask, scale"),
        (
            One,
            {"mask": X, "label": Y},
            "a batch of data has no x; the model takes x, mask, scale, of which it requires x",
        ),
        (
            Two,
            ((X,), Y),
            "a batch of data has no b; the model takes a, b, mask, of which it requires a, b",
        ),
        (
            Two,
            ({"mask": X}, Y),
            "a batch of data has no a, b; the model takes a, b, mask, of which it requires a, b",
        ),
    ],
)
def test_wrong_batches(model, batch, message, split, refused):
    with refused(NotReadyError, message):
        split(model, batch)


def test_one_tensor_is_not_data(refused):
    message = "data is one tensor; give an iterable of batches, for one batch a list: data=[tensor]"
    with refused(NotReadyError, message):
        list(batches(capture(One()), X))


def test_batches_are_read_one_by_one():
    def endless():
        while True:
            yield X

    assert next(batches(capture(One()), endless())).inputs.args[0] is X


@pytest.mark.parametrize(
    ("inputs", "args", "kwargs"),
    [
        (X, (X,), {}),
        ((X, Y), (X, Y), {}),
        ([X, Y], (X, Y), {}),
        ({"x": X}, (), {"x": X}),
        (3, (3,), {}),
        ((), (), {}),
        (Arguments((X,), {"mask": Y}), (X,), {"mask": Y}),
    ],
)
def test_arguments(inputs, args, kwargs):
    assert as_arguments(inputs) == (args, kwargs)


@pytest.mark.parametrize(
    ("given", "data", "expected"),
    [
        (None, None, Examples(None, None)),
        (None, [], Examples(None, None)),
        (None, [(X, Y), (Z, Y)], Examples(Arguments((X[:1],)), None)),
        (X, [(Z, Y)], Examples(Arguments((X,)), 1)),
        ((X, Y), None, Examples(Arguments((X, Y)), 2)),
        ({"x": X}, [(X, Y)], Examples(Arguments((), {"x": X}), None)),
    ],
)
def test_examples(given, data, expected):
    assert str(examples(capture(One()), given, data)) == str(expected)


def test_one_sample():
    given = Arguments((X, torch.tensor(3.0), X[:2], [Y, "text"]), {"mask": Y})
    cut = Arguments((X[:1], torch.tensor(3.0), X[:2], [Y[:1], "text"]), {"mask": Y[:1]})
    assert str(one_sample(given)) == str(cut)
    assert one_sample(Arguments((3,))) == Arguments((3,))


def test_rereadable():
    loader = torch.utils.data.DataLoader(list(range(4)), batch_size=2)
    assert rereadable(loader) is loader
    assert rereadable(batch for batch in (1, 2)) == [1, 2]
    assert rereadable(None) is None


def test_a_path_with_every_default(reads):
    reads(
        capture(Path(), X),
        """
        x: input
        other: input = None
        add: input = True
        mode: input = 'sum'
        scale: input = 2.0
        extra: input = None
        expect = expect(other, None, 'other')
        expect_1 = expect(add, True, 'add')
        expect_2 = expect(mode, 'sum', 'mode')
        expect_3 = expect(extra, None, 'extra')
        mul = mul(x, scale)
        add_1 = add(mul, 1)
        return {'y': add_1, 'nested': (x, [add_1, None, 3])}
        """,
    )


@pytest.mark.parametrize(
    ("inputs", "kwargs"),
    [
        (X, {}),
        (X, {"scale": 3.0, "add": True, "mode": "sum", "other": None}),
        ((X, 2 * X), {}),
        ({"x": X, "other": X}, {"scale": 0.5}),
        ({"x": X, "add": False, "mode": "neg"}, {}),
        ({"x": X, "extra": {"k": (X, Y)}}, {}),
    ],
)
def test_paths_beside_the_model(inputs, kwargs):
    gm = capture(Path(), inputs)
    args, named = as_arguments(inputs)
    torch.testing.assert_close(gm(*args, **named | kwargs), Path()(*args, **named | kwargs), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kwargs", "captured"),
    [
        ({"add": False}, "add=True"),
        ({"mode": "neg"}, "mode='sum'"),
        ({"other": X}, "other=None"),
        ({"extra": {"k": X}}, "extra=None"),
        ({"add": 1}, "add=True"),
        ({"add": None}, "add=True"),
    ],
)
def test_another_path_is_refused(kwargs, captured, refused):
    gm = capture(Path(), X)
    message = f"the model was captured with {captured}; state the value that you need in example_inputs"
    with refused(CaptureError, message):
        gm(X, **kwargs)


def test_what_the_path_needs_is_required():
    gm = capture(Path(), {"x": X, "other": X})
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'other'"):
        gm(X)


def test_a_checked_path_compiles():
    gm = capture(Path(), X)
    compiled = torch.compile(gm, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(X), Path()(X))


def test_any_number_of_arguments():
    class Many(nn.Module):
        def forward(self, *xs, **named):
            return xs[0] + xs[1] * named["z"]

    gm = capture(Many(), Arguments((X, X), {"z": X}))
    torch.testing.assert_close(gm(X, Y, z=X), X + Y * X)
