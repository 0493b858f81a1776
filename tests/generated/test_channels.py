"""Generated models: what channel groups say can be removed can, and the rest then computes what they say."""

import copy
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxcompress.graph import capture
from fxcompress.graph.channels import ChannelGroup, channel_groups
from fxcompress.graph.edit import get_tensor
from tests.generated.checks import double, examples
from tests.generated.program import Program
from tests.generated.removal import Without
from tests.generated.strategy import programs


def filled(gm: fx.GraphModule, group: ChannelGroup, units: list[int], value: float) -> fx.GraphModule:
    """Return a copy of a graph with a value in the slices of some units."""
    gm = copy.deepcopy(gm)
    for part in group.slices:
        indices = torch.from_numpy(part.indices[units].reshape(-1))
        get_tensor(gm, part.parameter).data.index_fill_(part.axis, indices, value)
    return gm


def outputs(run: Any, inputs: Any) -> list[Tensor]:
    found = run(**inputs) if isinstance(inputs, dict) else run(*inputs)
    return [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor)]


@examples
@given(programs(), st.data())
@torch.no_grad()
def test_channels_can_be_removed(program: Program, data: st.DataObject):
    example, inputs = (pytree.tree_map(double, program.batch(size)) for size in (2, 3))
    gm = capture(program.model().double().eval(), example, way="symbolic")
    groups = channel_groups(gm, example)
    assert_apart(groups)
    removable = [group for group in groups if not group.fixed and group.exact and group.units > 1]
    if not removable:
        return
    group = data.draw(st.sampled_from(removable), label="group")
    some = st.lists(st.integers(0, group.units - 1), min_size=1, max_size=group.units - 1, unique=True)
    units = data.draw(some, label="units")
    without = Without(filled(gm, group, units, torch.nan))
    positional = inputs.values() if isinstance(inputs, dict) else inputs
    found = [leaf for leaf in pytree.tree_leaves(without.run(*positional)) if isinstance(leaf, Tensor)]
    expected = outputs(filled(gm, group, units, 0.0), inputs)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def assert_apart(groups: list[ChannelGroup]) -> None:
    """Check that no index of a parameter is in two units."""
    seen: set[tuple[str, int, int]] = set()
    for group in groups:
        for part in group.slices:
            found = [(part.parameter, part.axis, int(index)) for index in part.indices.reshape(-1)]
            assert len(set(found)) == len(found)
            assert seen.isdisjoint(found)
            seen |= set(found)
