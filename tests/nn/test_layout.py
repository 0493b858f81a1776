"""Layout: which elements share a scale, against loops over them."""

import pytest
import torch

from fxcompress.nn import Layout

SHAPES = [((4, 6), 0), ((6, 4), 1), ((4, 3, 2), 0), ((3, 4, 3, 2), 1), ((5,), 0)]


def groups_by_hand(x, axis, size):
    """Return for each channel the lists of values that share a scale."""
    channels = [x.select(axis, index).flatten().tolist() for index in range(x.shape[axis])]
    return [[row[start : start + size] for start in range(0, len(row), size)] for row in channels]


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("size", [1, 2, 4, 100])
def test_rows_of_groups(shape, axis, size):
    x = torch.randn(shape)
    layout, groups = Layout.group(axis, shape, size), groups_by_hand(x, axis, size)
    assert layout.shape == (shape[axis], len(groups[0]))
    rows = [row.tolist() for row in layout.rows(x)]
    expected = [group + [0.0] * (size - len(group)) for channel in groups for group in channel]
    assert rows == expected
    assert torch.equal(layout.unrows(layout.rows(x), x), x)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("size", [1, 2, 4, 100])
def test_whole_rows_have_no_padding(shape, axis, size):
    x = torch.randn(shape)
    layout, groups = Layout.group(axis, shape, size), groups_by_hand(x, axis, size)
    found = layout.gather([rows.sum(1) for rows in layout.whole_rows(x)])
    assert found.shape == layout.shape
    assert found.tolist() == [[pytest.approx(sum(group), abs=1e-5) for group in channel] for channel in groups]
    assert sum(rows.numel() for rows in layout.whole_rows(x)) == x.numel()


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("size", [1, 2, 4, 100])
def test_spreading_one_value_for_each_group(shape, axis, size):
    layout = Layout.group(axis, shape, size)
    vector = torch.randn(layout.shape)
    spread = layout.spread(vector, torch.zeros(shape)).expand(shape)
    for channel, groups in enumerate(groups_by_hand(spread, axis, size)):
        assert [set(group) for group in groups] == [{value} for value in vector[channel].tolist()]


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_channels(shape, axis):
    x, layout = torch.randn(shape), Layout.channel(axis, shape[axis])
    assert layout.shape == (shape[axis],)
    assert [row.tolist() for row in layout.rows(x)] == [c[0] for c in groups_by_hand(x, axis, x.numel())]
    assert torch.equal(layout.unrows(layout.rows(x), x), x)
    vector = torch.randn(shape[axis])
    spread = layout.spread(vector, x).expand(shape)
    assert all((spread.select(axis, index) == vector[index]).all() for index in range(shape[axis]))
    assert torch.equal(layout.gather([vector]), vector)


def test_tensor_and_token():
    x = torch.randn(2, 3, 4)
    assert Layout().shape == ()
    assert torch.equal(Layout().rows(x), x.reshape(1, 24))
    assert torch.equal(Layout().gather([torch.ones(1)]), torch.tensor(1.0))
    token = Layout("token")
    assert torch.equal(token.rows(x), x.reshape(6, 4))
    spread = token.spread(token.rows(x).amax(1), x)
    assert torch.equal(spread, x.amax(2, keepdim=True))
    for layout in (Layout(), token):
        assert torch.equal(layout.unrows(layout.rows(x), x), x)
    assert token.rows(torch.zeros(0, 4)).shape == (0, 4)
    assert token.rows(torch.tensor(1.0)).shape == (1, 1)


def test_without_values():
    assert Layout.channel(0, 0).rows(torch.zeros(0, 4)).shape == (0, 4)
    assert Layout.channel(0, 4).rows(torch.zeros(4, 0)).shape == (4, 0)
    layout = Layout.group(0, (0, 4), 2)
    assert layout.spread(torch.zeros(layout.shape), torch.zeros(0, 4)).shape == (0, 4)


def test_in_words():
    layouts = (Layout(), Layout.channel(0, 3), Layout.group(0, (3, 8), 4), Layout("token"))
    assert [str(layout) for layout in layouts] == ["per tensor", "per channel", "per group of 4", "per token"]
