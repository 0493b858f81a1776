"""Operators that tell channels apart by place: removing each unit is setting it to zero, whatever the code does."""

import itertools

import numpy as np
import pytest
import torch

from fxcompress.graph import capture
from fxcompress.graph.channels import channel_groups
from tests.graph.channels.places import PATTERNS, Between
from tests.graph.channels.test_groups import indices, with_zeros, without

MAKER = "first.weight", 0


def built(between, x, gone=()):
    torch.manual_seed(0)
    return Between(between, x, gone).double().eval()


def groups_of(gm, x):
    """Return the groups of what the first layer makes, those that can be removed exactly, and their units as text."""
    groups = [one for one in channel_groups(gm, x) if (one.slices[0].parameter, one.slices[0].axis) == MAKER]
    exact = [one for one in groups if not one.fixed and one.exact]
    return groups, exact, sorted("".join(map(str, row)) for one in exact for row in one.slices[0].indices)


@pytest.mark.parametrize(("between", "shape", "units", "reason"), PATTERNS.values(), ids=PATTERNS)
def test_removing_is_setting_to_zero(between, shape, units, reason):
    x = torch.randn(shape, dtype=torch.float64)
    gm = capture(built(between, x), x, way="symbolic")
    groups, exact, found = groups_of(gm, x)
    for one in exact:
        for many in itertools.chain(range(one.units), itertools.permutations(range(one.units), 2)):
            removed = indices(one, np.atleast_1d(many))
            gone = tuple(removed[MAKER].tolist())
            if len(gone) < 6:
                small = built(between, x, gone)
                small.load_state_dict(without(gm.state_dict(), removed))
                torch.testing.assert_close(small(x), with_zeros(gm, removed)(x), rtol=1e-9, atol=1e-9)
    assert found == units.split()
    assert all(reason in one.fixed for one in groups if one.fixed)


EXPORTED = (
    "every second",
    "a list of them",
    "a mask of them",
    "a shift",
    "halves",
    "two by number",
    "shuffled",
    "a norm of them",
    "windows",
    "a diagonal",
)


@pytest.mark.parametrize("pattern", EXPORTED)
def test_exported_patterns_have_the_same_units(pattern):
    between, shape, units, _ = PATTERNS[pattern]
    x = torch.randn(shape, dtype=torch.float64)
    assert groups_of(capture(built(between, x), x, way="export"), x)[2] == units.split()
