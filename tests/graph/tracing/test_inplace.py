"""In-place operations: out of place on activations, kept on the model's state, refused where memory is shared."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxcompress.errors import CaptureError
from fxcompress.graph import capture, text
from fxcompress.graph.coverage import coverage


class Net(nn.Module):
    """One layer, and what follows it."""

    def __init__(self, follow, *modules):
        super().__init__()
        self.fc, self.parts, self.follow = nn.Linear(2, 2), nn.ModuleList(modules), follow

    def forward(self, x):
        return self.follow(self.fc(x), *self.parts)


def augmented(operation):
    namespace = {}
    exec(f"def change(y):\n    y {operation} 2\n    return y", namespace)
    return namespace["change"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (augmented("+="), "add = add(fc, 2)"),
        (augmented("-="), "sub = sub(fc, 2)"),
        (augmented("*="), "mul = mul(fc, 2)"),
        (augmented("/="), "div = div(fc, 2)"),
        (augmented("**="), "pow_1 = pow(fc, 2)"),
        (lambda y: y.add_(1), "add = add(fc, 1)"),
        (lambda y: y.mul_(3), "mul = mul(fc, 3)"),
        (lambda y: y.clamp_(0, 1), "clamp = .clamp(fc, 0, 1)"),
        (lambda y: torch.relu_(y), "relu = relu(fc)"),
        (lambda y: F.relu(y, inplace=True), "relu = relu(fc)"),
        (lambda y: F.leaky_relu(y, 0.1, inplace=True), "leaky_relu = leaky_relu(fc, 0.1)"),
        (nn.ReLU(inplace=True), "follow = relu(fc)"),
    ],
)
def test_spellings(change, line, same):
    gm = same(Net(change), torch.randn(4, 2))
    assert text(gm) == f"x: input\nfc = linear(x, fc.weight, fc.bias)\n{line}\nreturn {line.split()[0]}"


def test_later_readers_see_the_change(same, reads):
    def residual(y, drop):
        z = drop(y)
        y += 1
        return y * 2, z

    reads(
        same(Net(residual, nn.Dropout(0.5, inplace=True)), torch.randn(4, 2)),
        """
        x: input
        fc = linear(x, fc.weight, fc.bias)
        parts_0 = Dropout(p=0.5, inplace=False)(fc)
        add = add(parts_0, 1)
        mul = mul(add, 2)
        return (mul, add)
        """,
    )


def test_earlier_readers_do_not(same, reads):
    def before(y):
        z = y * 2
        y -= z
        return z, y

    reads(
        same(Net(before), torch.randn(4, 2)),
        """
        x: input
        fc = linear(x, fc.weight, fc.bias)
        mul = mul(fc, 2)
        sub = sub(fc, mul)
        return (mul, sub)
        """,
    )


@pytest.mark.parametrize(
    "module",
    [
        *(nn.Hardswish(inplace=True), nn.LeakyReLU(0.1, inplace=True), nn.ELU(inplace=True), nn.SiLU(inplace=True)),
        *(nn.Dropout(0.5, inplace=True), nn.RReLU(inplace=True), nn.Threshold(0.1, 2, inplace=True)),
    ],
    ids=str,
)
def test_modules(module, same):
    gm = same(Net(lambda y, part: (part(y), y), module), torch.randn(4, 2))
    assert not any(getattr(part, "inplace", False) for part in gm.modules())


def test_an_input_is_not_changed():
    def forward(x):
        x += 1
        return x

    gm = capture(Function(forward), torch.zeros(2))
    given = torch.zeros(2)
    assert gm(given).tolist() == [1, 1]
    assert given.tolist() == [0, 0]


def test_numbers_are_not_tensors(reads):
    def forward(x):
        size = x.shape[0]
        size += 1
        return x + size

    reads(
        capture(Function(forward), torch.zeros(2)),
        """
        x: input
        getattr_1 = getattr(x, 'shape')
        getitem = getitem(getattr_1, 0)
        add = add(getitem, 1)
        add_1 = add(x, add)
        return add_1
        """,
    )


class Function(nn.Module):
    """A function of the input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def changed_view(x):
    y = x * 2
    y[:, 0].add_(1)
    return y


def changed_base(x):
    y = x * 2
    z = y.t()
    y += 1
    return z


def changed_sibling(x):
    y = x * 2
    a, b = y.view(-1), y.flatten()
    a += 1
    return b


SHARED = "which may share its memory; compute it out of place"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (changed_view, f"'add_' changes 'getitem' in place, and 'output' later reads 'mul', {SHARED}"),
        (changed_base, f"'iadd' changes 'mul' in place, and 'output' later reads 't', {SHARED}"),
        (changed_sibling, f"'iadd' changes 'view' in place, and 'output' later reads 'flatten', {SHARED}"),
    ],
)
def test_shared_memory_is_refused(function, message, refused):
    with refused(CaptureError, message):
        capture(Function(function), torch.ones(2, 2), way="symbolic")


@pytest.mark.parametrize("function", [changed_view, changed_base, changed_sibling])
def test_shared_memory_makes_way_for_export(function):
    model, x = Net(function), torch.randn(3, 2)
    gm = capture(model, x)
    assert coverage(gm).way == "export"
    torch.testing.assert_close(gm(x), model(x), rtol=0, atol=0)


def test_a_view_that_nobody_else_reads(same, reads):
    def forward(y):
        y = y.view(-1)
        y += 1
        return y.view(2, -1).relu_()

    reads(
        same(Net(forward), torch.randn(4, 2)),
        """
        x: input
        fc = linear(x, fc.weight, fc.bias)
        view = view(fc, (-1,))
        add = add(view, 1)
        view_1 = view(add, (2, -1))
        relu = relu(view_1)
        return relu
        """,
    )


class Counter(nn.Module):
    """Buffers that forward changes in place, one of them through a view."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, x):
        self.calls += 1
        with torch.no_grad():
            self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
        self.mean[1:].add_(1)
        return self.fc(x) * self.calls


def test_state_is_changed_in_place(same):
    gm = same(Counter(), torch.ones(3, 2))
    assert gm.calls == 2
    torch.testing.assert_close(gm.mean, torch.tensor([0.19, 2.09]))


def test_capture_does_not_count():
    model = Counter()
    gm = capture(model, torch.ones(3, 2))
    assert model.calls == gm.calls == 0
    assert gm.mean.tolist() == [0, 0]


def test_state_that_is_replaced_is_refused(refused):
    class Assigns(Counter):
        def forward(self, x):
            self.calls = self.calls + 1
            return x * self.calls

    message = (
        "forward of {} assigns a new value to its buffer 'calls', which a graph cannot; change it in place, for "
        "example with self.calls.copy_(value)"
    )
    with refused(CaptureError, message.format("the model")):
        capture(Assigns())
    with refused(CaptureError, message.format("'0'")):
        capture(nn.Sequential(Assigns()))
