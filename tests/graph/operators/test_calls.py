"""The operator table: each spelling of an operator becomes the one call of its row, which computes the same."""

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxcompress.graph.operators.calls import argument_node, normalize_aten_call, normalize_call, operator_of
from fxcompress.graph.operators.table import OPERATORS
from tests.graph.operators.spellings import IMAGE, LINE, SPELLINGS, T2, W1, W2, Call, X, Y, aten, call

ROWS = {row.kind: row for row in OPERATORS}


def run(called):
    args = called.args
    function = getattr(args[0], called.function) if isinstance(called.function, str) else called.function
    return function(*(args[1:] if isinstance(called.function, str) else args), **called.kwargs)


def spelled(called):
    """Return the call in a graph, and the tensors of its placeholders."""
    graph, tensors = fx.Graph(), {}

    def placeholder(tensor):
        known = next((node for node, other in tensors.items() if other is tensor), None)
        node = graph.placeholder("x") if known is None else known
        tensors[node] = tensor
        return node

    args, kwargs = pytree.tree_map_only(Tensor, placeholder, (called.args, called.kwargs))
    op = "call_method" if isinstance(called.function, str) else "call_function"
    return graph.create_node(op, called.function, args, kwargs), tensors


def normalized(called):
    """Return the call in the normal form."""
    node, tensors = spelled(called)
    if called.is_aten:
        normalize_aten_call(node, called.function.overloadpacket.__name__)
    else:
        normalize_call(node)
    args, kwargs = fx.map_arg((node.args, node.kwargs), tensors.__getitem__)
    return Call(node.target, args, kwargs), operator_of(node)


@pytest.mark.parametrize(
    ("kind", "called", "first"),
    [pytest.param(kind, one, calls[0], id=f"{kind}-{one}") for kind, calls in SPELLINGS for one in calls],
)
def test_a_spelling_becomes_the_call_of_the_row(kind, called, first):
    found, row = normalized(called)
    assert row is ROWS[kind]
    assert found.function is row.functions[0]
    assert [*found.kwargs] == [*row.keywords]
    assert len(found.args) + len(found.kwargs) == len(row.arguments)
    expected = run(called)
    assert type(run(found)) is type(expected) or called.is_aten  # tuples are lists there
    torch.testing.assert_close(run(found), expected, rtol=0, atol=0)
    one_form, _ = normalized(first)
    assert repr(found) == repr(one_form)
    leaves = pytree.tree_leaves((found.args, found.kwargs), is_leaf=lambda value: isinstance(value, list))
    assert not any(isinstance(leaf, list) for leaf in leaves)
    for name, axes in row.per_axis.items():
        value = dict(zip(row.arguments, found.args, strict=False)).get(name)
        assert value is None or isinstance(value, str) or len(value) == axes or kind in ("mean", "sum")


def test_every_spelling_of_every_row_is_tested():
    for row in OPERATORS:
        calls = [one for kind, group in SPELLINGS if kind == row.kind for one in group]
        aten_names = {one.function.overloadpacket.__name__ for one in calls if one.is_aten}
        assert set(row.functions) <= {one.function for one in calls}, row.kind
        assert set(row.aten or (row.kind,)) == aten_names, row.kind


def test_kinds_and_spellings_belong_to_one_row():
    functions = [function for row in OPERATORS for function in dict.fromkeys(row.functions)]
    assert len(ROWS) == len(OPERATORS)
    assert len(set(functions)) == len(functions)
    names = [name for row in OPERATORS for name in row.aten or (row.kind,)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "called",
    [
        call(torch.add, X, Y, alpha=2),
        call("add", X, Y, alpha=2),
        call(aten.add.Tensor, X, Y, alpha=2),
        call(torch.sub, X, Y, alpha=2),
        call(torch.div, X, Y, rounding_mode="floor"),
        call(aten.div.Tensor_mode, X, Y, rounding_mode="trunc"),
        call(torch.addmm, X[:, :2], X, Y.t(), beta=0.5),
        call(operator.sub, 1, X),
        call(operator.truediv, 1, X),
        call(operator.add, 1, 2),
        call(F.relu, X.clone(), inplace=True),
        call(F.softmax, X, -1, dtype=torch.float64),
        call("softmax", X, -1, torch.float64),
        call("sum", X, 1, dtype=torch.float64),
        call(torch.mean, X, axis=1),
        call(F.max_pool2d, IMAGE, 2, return_indices=True),
        call("squeeze", X),
        call("contiguous", IMAGE, memory_format=torch.channels_last),
        call("view", X, torch.int32),
        call(aten.elu.default, X, 1.0, 2.0),
        call(torch.cumsum, X, 0),
        call("clamp", X, 0),
    ],
    ids=str,
)
def test_a_call_that_says_more_stays(called):
    found, row = normalized(called)
    assert row is None
    assert found == called


def test_a_shape_that_is_computed_stays():
    graph = fx.Graph()
    x, size = graph.placeholder("x"), graph.placeholder("size")
    alone, among = graph.call_method("view", (x, size)), graph.call_method("view", (x, size, -1))
    normalize_call(alone)
    normalize_call(among)
    assert (alone.op, alone.args, operator_of(alone)) == ("call_method", (x, size), None)  # a number or a whole shape
    assert (among.target, among.args, operator_of(among)) == (torch.Tensor.view, (x, (size, -1)), ROWS["view"])


@pytest.mark.parametrize(
    ("called", "args"),
    [
        (call(F.conv2d, IMAGE, W2, groups=2), (None, (1, 1), (0, 0), (1, 1), 2)),
        (call(F.conv1d, LINE, W1, None, 2, "valid", groups=2), (None, (2,), "valid", (1,), 2)),
        (call(F.conv_transpose2d, IMAGE, T2), (None, (1, 1), (0, 0), (0, 0), 1, (1, 1))),
        (call(F.max_pool2d, IMAGE, (3, 2)), ((3, 2), (3, 2), (0, 0), (1, 1), False)),
        (call(F.avg_pool2d, IMAGE, 3, 1), ((3, 3), (1, 1), (0, 0), False, True, None)),
        (call(F.adaptive_avg_pool2d, IMAGE, 1), ((1, 1),)),
        (call("mean", X, -1), ((-1,), False)),
        (call("flatten", IMAGE), (0, -1)),
        (call("softmax", X, dim=-1), (-1,)),
        (call(F.softplus, X), (1.0, 20.0)),
    ],
    ids=str,
)
def test_arguments_in_their_one_form(called, args):
    found, _ = normalized(called)
    assert tuple(value for value in found.args if not isinstance(value, Tensor)) == args


def test_what_stands_in_the_graph_is_an_operator_only_in_the_normal_form():
    graph = fx.Graph()
    x, weight = graph.placeholder("x"), graph.placeholder("weight")
    short, other = graph.call_function(F.linear, (x, weight)), graph.call_function(operator.add, (x, weight))
    assert operator_of(short) is operator_of(other) is operator_of(x) is None
    normalize_call(short)
    assert operator_of(short) is ROWS["linear"]
    assert [argument_node(short, position) for position in (0, 1, 2, None)] == [x, weight, None, None]


@pytest.mark.parametrize("row", OPERATORS, ids=[row.kind for row in OPERATORS])
def test_what_a_row_says_of_its_arguments(row):
    names = list(row.arguments)
    assert set(row.per_axis) <= {*names, "dilation"}  # of average pooling too
    assert set(row.aten_order or names) - {"dtype", "cudnn_enable"} <= set(names)
    assert row.spread in ("", names[-1])
    assert tuple(names[len(names) - len(row.keywords) :]) == row.keywords
    assert (row.bias is None) == ("bias" not in names)
    assert row.bias is None or names[row.bias] == "bias"
    assert row.weight is None or names[row.weight] == "weight"
