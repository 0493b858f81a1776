"""Channel groups: removing units gives what setting their slices to zero gives, architecture by architecture."""

import copy
import random

import networkx
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxcompress.graph import capture
from fxcompress.graph.channels import channel_groups
from fxcompress.graph.channels.groups import components
from tests.graph.channels.models import (
    Chain,
    Decoder,
    Dense,
    Grouped,
    GroupNormed,
    GroupsOfTwoKinds,
    MobileBlock,
    NeXt,
    NormOfTokens,
    OneHead,
    OneHeadPacked,
    Packed,
    Ratio,
    Residual,
    Shuffle,
    SplitAttention,
    Upscale,
)

# model and its widths, a member of the group (parameter:axis:index), units removed, the widths that are left, and the
# module or operator that mixes the channels, so that removing is something else than setting to zero
CASES = [
    (Chain, {}, "first.weight", 2, {"a": 4}, ""),
    (Chain, {}, "second.weight", 3, {"b": 2}, ""),
    (Residual, {}, "stem.weight", 4, {"a": 2}, ""),
    (Residual, {}, "into.weight", 1, {"b": 3}, ""),
    (Residual, {}, "last.weight", 2, {"c": 3}, ""),
    (MobileBlock, {}, "stem.weight", 1, {"a": 3}, ""),
    (MobileBlock, {}, "depth.weight", 4, {"b": 2}, ""),
    (MobileBlock, {}, "squeeze.weight", 2, {"c": 1}, ""),
    (Grouped, {}, "stem.weight", 1, {"groups": 3}, ""),
    (Grouped, {"groups": 4, "size": 1, "made": 2, "transposed": 3}, "mix.weight", 2, {"groups": 2}, ""),
    (Grouped, {"groups": 2, "size": 4, "made": 3, "transposed": 5}, "stem.weight", 3, {"size": 1}, ""),
    (Grouped, {"groups": 2, "size": 4, "made": 3, "transposed": 5}, "mix.weight", 2, {"made": 1}, ""),
    (Grouped, {"groups": 2, "size": 4, "made": 3, "transposed": 5}, "up.weight:1", 1, {"transposed": 4}, ""),
    (Grouped, {}, "down.weight:1", 1, {"last": 2}, ""),
    (Dense, {}, "first.weight:0:0", 2, {"a": 2}, ""),
    (Dense, {}, "first.weight:0:4", 1, {"b": 2}, ""),
    (Dense, {}, "second.weight", 2, {"c": 3}, ""),
    (Dense, {}, "third.weight:0:4", 1, {"pad": 1}, ""),
    (Upscale, {}, "first.weight", 1, {"a": 2}, ""),
    (Upscale, {}, "second.weight", 2, {"b": 2}, ""),
    (Shuffle, {}, "right.weight", 2, {"a": 2, "b": 2}, ""),
    (SplitAttention, {}, "first.weight", 2, {"a": 3}, ""),
    (NeXt, {}, "first.weight", 3, {"b": 2}, ""),
    (NeXt, {}, "scale", 2, {"a": 4}, "norm"),
    (GroupNormed, {}, "first.weight", 2, {"groups": 2}, ""),
    (GroupNormed, {"groups": 2, "size": 4}, "first.weight", 2, {"size": 2}, "norm"),
    (GroupNormed, {"groups": 1, "size": 6}, "first.weight", 2, {"size": 4}, "norm"),
    (Packed, {}, "qkv.weight", 1, {"heads": 2}, ""),
    (Packed, {}, "up.weight", 2, {"hidden": 4}, ""),
    (Packed, {}, "embed.weight", 2, {"width": 6}, "norm"),
    (Decoder, {}, "k.weight", 1, {"heads": 2}, ""),
    (Decoder, {}, "gate.weight", 2, {"hidden": 4}, ""),
    (Decoder, {}, "embed.weight:1", 2, {"width": 6}, "norm"),
    (Decoder, {"kernel": True}, "v.weight", 2, {"heads": 1}, ""),
    (OneHead, {}, "stem.weight", 2, {"a": 3}, ""),
    (OneHead, {}, "q:1", 1, {"b": 3}, ""),
    (OneHead, {"by_size": True}, "k", 1, {"b": 3}, "div"),
    (OneHead, {}, "v:1", 1, {"c": 2}, ""),
]


def made(kind, **widths):
    """Return a model in float64 whose state is random, statistics of batch norms too."""
    torch.manual_seed(0)
    model = kind(**widths).double().eval()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            torch.nn.init.uniform_(tensor, 0.2, 1.0) if tensor.dim() == 1 else torch.nn.init.normal_(tensor)
    return model


def inputs_of(kind):
    if kind is Decoder:
        return torch.tensor([[1, 5, 0, 6], [3, 3, 2, 4]])
    return torch.randn((2, 7, 5) if kind is Packed else (2, 3, 8, 8), dtype=torch.float64)


def group_with(groups, member):
    name, axis, index = (*member.split(":"), "0", "0")[:3]
    at = int(axis), int(index)
    (found,) = [
        g
        for g in groups
        for part in g.slices
        if (part.parameter, part.axis) == (name, at[0]) and at[1] in part.indices
    ]
    return found


def indices(group, units):
    return {(part.parameter, part.axis): part.indices[units].reshape(-1) for part in group.slices}


def with_zeros(gm, removed):
    gm = copy.deepcopy(gm)
    for (name, axis), at in removed.items():
        gm.state_dict()[name].index_fill_(axis, torch.tensor(at), 0)
    return gm


def without(state, removed):
    """Return a state dict without the indices; what is tied is the same under each of its names."""
    owner = {tensor.data_ptr(): name for name, tensor in reversed(state.items())}
    left = {name: state[owner[tensor.data_ptr()]].numpy() for name, tensor in state.items()}
    for (name, axis), at in removed.items():
        for other in [other for other in state if owner[state[other].data_ptr()] == name]:
            left[other] = np.delete(left[other], at, axis)
    return {name: torch.from_numpy(values) for name, values in left.items()}


@pytest.mark.parametrize(("kind", "widths", "member", "count", "left", "mixed_by"), CASES)
def test_removing_is_setting_to_zero(kind, widths, member, count, left, mixed_by):
    model, x = made(kind, **widths), inputs_of(kind)
    gm = capture(model, x)
    group = group_with(channel_groups(gm, x), member)
    assert (group.fixed, [node.split("_")[0] for node in group.mixed_by]) == ("", [mixed_by] if mixed_by else [])
    removed = indices(group, np.random.default_rng(0).permutation(group.units)[:count])
    small = made(kind, **widths | left)
    small.load_state_dict(without(gm.state_dict(), removed))
    same = torch.allclose(small(x), with_zeros(gm, removed)(x), rtol=1e-9, atol=1e-9)
    assert same == group.exact
    assert not torch.allclose(small(x), gm(x), rtol=1e-3)


def test_a_group_keeps_the_one_channel_that_it_makes():
    gm = capture(made(Ratio), inputs_of(Ratio))
    group = group_with(channel_groups(gm, inputs_of(Ratio)), "conv.weight")
    assert group.fixed == "it is the whole of axis 0 of 'conv.weight'"


def test_channels_of_each_group_stay_such_in_the_next_groups():
    x = inputs_of(GroupsOfTwoKinds)
    group = group_with(channel_groups(capture(made(GroupsOfTwoKinds), x), x), "first.weight")
    assert group.fixed == ""
    assert indices(group, [0])["first.weight", 0].tolist() == [0, 2]
    assert indices(group, [0])["second.weight", 1].tolist() == [0]


def test_a_batch_norm_beside_the_channels_makes_them_inexact():
    x = inputs_of(Packed)
    group = group_with(channel_groups(capture(made(NormOfTokens), x), x), "first.weight")
    assert (group.fixed, group.mixed_by) == ("", ("matmul",))


def test_what_is_reshaped_stays_rectangular():
    model, x = made(OneHeadPacked), inputs_of(Packed)
    group = group_with(channel_groups(capture(model, x), x), "qkv.weight")
    assert indices(group, [1])["qkv.weight", 0].tolist() == [1, 5, 9]
    assert indices(group, [1])["out.weight", 1].tolist() == [1]


class RandomNet(nn.Module):
    """Random layers on images of one size; the last one reads all values."""

    def __init__(self, seed):
        super().__init__()
        rng = random.Random(seed)
        self.steps, self.parts, sizes = [], nn.ModuleList(), [3]
        for _ in range(rng.randint(2, 10)):
            kind, at = (
                rng.choice(("conv", "deep", "norm", "add", "cat", "split", "shuffle")),
                rng.randrange(len(sizes)),
            )
            other, part = rng.randrange(len(sizes)), nn.Identity()
            size = {"cat": sizes[at] + sizes[other], "split": sizes[at] // 2}.get(kind, sizes[at])
            if kind == "add" and sizes[at] != sizes[other]:
                part = nn.Conv2d(sizes[other], size, 1)
            elif kind == "norm":
                part = nn.BatchNorm2d(size)
            elif kind == "deep":
                part = nn.Conv2d(size, size, 3, padding=1, groups=size)
            elif kind == "conv" or (kind in ("split", "shuffle") and sizes[at] % 2):
                kind, size = "conv", rng.choice((4, 6, 8))
                part = nn.Conv2d(sizes[at], size, 3, padding=1)
            self.steps.append((kind, at, other))
            self.parts.append(part)
            sizes.append(size)
        self.last = nn.Conv2d(sum(sizes), 2, 1)

    def forward(self, x):
        values = [x]
        for (kind, at, other), part in zip(self.steps, self.parts, strict=True):
            x, y = values[at], values[other]
            if kind == "add":
                x = x + part(y)
            elif kind == "cat":
                x = torch.cat([x, y], 1)
            elif kind == "split":
                x, y = x.chunk(2, 1)
                x = x * 2 + y
            elif kind == "shuffle":
                x = x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
            else:
                x = F.gelu(part(x))
            values.append(x)
        return self.last(torch.cat(values, 1))


def silent_columns(gm, x, weights, removed):
    """Return the columns of weights that have no gradient once slices are zero: what they read is zero."""
    found = with_zeros(gm, removed)
    found(x).square().sum().backward()
    gradients = {name: dict(found.named_parameters())[name].grad.transpose(0, 1).flatten(1) for name in weights}
    return {(name, at) for name, rows in gradients.items() for at in range(len(rows)) if not rows[at].any()}


@pytest.mark.parametrize("seed", range(60))
def test_gradients_tell_the_same(seed):
    """The channels that a unit's producers make are read by the columns that it lists, and by no others."""
    torch.manual_seed(seed)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    gm = capture(RandomNet(seed).double().eval(), x)
    weights = [f"{name}.weight" for name, part in gm.named_modules() if name == "last" or name.startswith("parts.")]
    weights = [name for name in weights if name in gm.state_dict() and gm.state_dict()[name].dim() == 4]
    weights = [name for name in weights if gm.state_dict()[name].shape[1] > 1]
    assert not silent_columns(gm, x, weights, {})
    for group in channel_groups(gm, x):
        removed = indices(group, [0])
        columns = {(name, int(at)) for (name, axis), many in removed.items() if axis == 1 for at in many}
        makers = {key: at for key, at in removed.items() if key[1] == 0}
        if group.fixed:
            continue
        assert group.exact
        assert silent_columns(gm, x, weights, makers) == columns
        for name, at in [key for key in makers if key[0] in weights]:
            others = {key: value for key, value in makers.items() if key != (name, at)}
            assert silent_columns(gm, x, weights, others) < columns


@pytest.mark.parametrize("seed", range(20))
def test_components_are_those_of_networkx(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(1, 60, (2, seed * 4))
    graph = networkx.Graph([(i, i) for i in range(60)] + list(zip(a.tolist(), b.tolist(), strict=True)))
    expected = {one: min(part) for part in networkx.connected_components(graph) for one in part}
    assert components(60, a, b).tolist() == [expected[one] for one in range(60)]
    path = rng.permutation(1000)
    assert not components(1000, path[1:], path[:-1]).any()
