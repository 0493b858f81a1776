"""Channel rules, operator by operator: what is coupled, what mixes channels, and why some of them stay."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxcompress.graph import capture
from fxcompress.graph.channels import channel_groups
from fxcompress.graph.edit import insert
from fxcompress.nn import Choice, Mask, UniformQuantizer
from fxcompress.passes import apply
from fxcompress.policies import FoldBatchNorm
from tests.graph.channels.models import Decoder, Dense, MobileBlock, Packed, SplitAttention

IMAGE = torch.randn(2, 3, 4, 4)


def shown(groups):
    """Return a line for each group: units, slices as parameter.axis and how many indices a unit has there, notes."""
    found = []
    for group in groups:
        parts = [(f"{part.parameter}.{part.axis}", part.indices.shape[1]) for part in group.slices]
        line = f"{group.units}: " + ", ".join(name if many == 1 else f"{name} x{many}" for name, many in parts)
        nodes = [re.sub(r"_\d+$", "", node) for node in group.mixed_by]
        line += f"; mixed by {', '.join(nodes)}" if nodes else ""
        found.append(line + (f"; stays: {group.fixed}" if group.fixed else ""))
    return found


def inner(model, forward, after=4, **parts):
    """Return the groups of a model that computes something between a convolution of 4 channels and another."""

    def whole(self, x):
        return self.last(forward(self, self.first(x)))

    made = {name: nn.Parameter(torch.rand(part)) if isinstance(part, tuple) else part for name, part in parts.items()}
    net = model(whole, first=nn.Conv2d(3, 4, 1), last=nn.Conv2d(after, 2, 1), **made).eval()
    found = shown(channel_groups(capture(net, IMAGE), IMAGE))
    ends = [line for line in found if "last.weight.0" in line or "first.weight.1" in line]
    assert [line.partition("; ")[2] for line in ends] == [
        "stays: it meets the input 'x' in 'first'",
        "stays: it is part of the model's output",
    ]
    return [line for line in found if line not in ends]


MADE, ALL = "first.weight.0, first.bias.0", "first.weight.0, first.bias.0, last.weight.1"
MIXING = {
    "weights of channels": (lambda self, x: x * self.p, [f"4: {ALL}".replace("bias.0", "bias.0, p.0")]),
    "a statistic of all": (lambda self, x: x / x.std(1, keepdim=True), [f"4: {ALL}; mixed by std"]),
    "an axis of places": (lambda self, x: x.flatten(2).softmax(-1).view_as(x), [f"4: {ALL}"]),
    "an axis of channels": (lambda self, x: x.softmax(1), [f"4: {ALL}; mixed by softmax"]),
    "a norm of all": (lambda self, x: F.normalize(x), [f"4: {ALL}"]),
    "a norm of all halves": (lambda self, x: F.normalize(x.sigmoid()), [f"4: {ALL}; mixed by normalize"]),
    "a norm of each": (lambda self, x: F.instance_norm(x), [f"4: {ALL}"]),
    "a division by zero": (lambda self, x: self.p / x, [f"4: {ALL}; mixed by div".replace("bias.0", "bias.0, p.0")]),
    "the logarithm of zero": (lambda self, x: x.log(), [f"4: {ALL}; mixed by log"]),
    "a sum of zeros": (lambda self, x: x.relu().sum(1, True) * self.p, [f"4: {MADE}", "4: p.0, last.weight.1"]),
    "a sum of halves": (
        lambda self, x: x.sigmoid().sum(1, True) * self.p,
        [f"4: {MADE}; mixed by sum", "4: p.0, last.weight.1"],
    ),
    "a product of halves": (
        lambda self, x: torch.einsum("...chw,chw->...", x.sigmoid(), x.sigmoid()[0]) * self.p,
        [f"4: {MADE}; mixed by einsum", "4: p.0, last.weight.1"],
    ),
    "the number of channels": (lambda self, x: x * (x.shape[1] + 1), [f"4: {ALL}; mixed by mul"]),
    "the number of places": (lambda self, x: x * x.size(2), [f"4: {ALL}"]),
    "the number of elements": (lambda self, x: x / x.numel(), [f"4: {ALL}; mixed by div"]),
}


@pytest.mark.parametrize(("forward", "expected"), MIXING.values(), ids=MIXING)
def test_what_mixes_channels(model, forward, expected):
    assert inner(model, forward, p=(4, 1, 1)) == expected


STAYING = {
    "one of them": (
        lambda self, x: x * x[:, :1],
        [f"1: {ALL}; stays: 'getitem' takes it out alone", f"3: {ALL}"],
    ),
    "picking by data": (
        lambda self, x: x[:, x.mean((0, 2, 3)).argsort()],
        [
            f"4: {MADE}; stays: 'argsort' is computed from it by argsort, whose channels are not known",
            "4: last.weight.1; stays: it meets what 'getitem' picks in 'last'",
        ],
    ),
    "an unknown operator": (
        lambda self, x: x.cumsum(1),
        [
            f"4: {MADE}; stays: 'cumsum' is computed from it by cumsum, whose channels are not known",
            "4: last.weight.1; stays: it meets what 'cumsum' (cumsum) computes in 'last'",
        ],
    ),
    "a recurrent layer": (
        lambda self, x: self.lstm(x.flatten(2).mT)[0].mT.unflatten(2, (4, 4)),
        [
            f"4: {MADE}; stays: 'lstm_lstm' is computed from it by lstm, whose channels are not known",
            "4: last.weight.1; stays: it meets what 'lstm_lstm' (lstm) computes in 'last'",
        ],
    ),
    "each with the next": (
        lambda self, x: x + x.roll(1, 1),
        ["1: first.weight.0 x4, first.bias.0 x4, last.weight.1 x4; stays: 'roll' shifts it"],
    ),
    "a convolution over channels": (
        lambda self, x: self.mix(x.transpose(1, 3)).transpose(1, 3),
        [
            f"4: {MADE}; stays: 'mix' mixes it with what lies around",
            "4: mix.weight.0, mix.bias.0; stays: 'last' mixes it with what lies around",
            "4: mix.weight.1; stays: it meets the input 'x' in 'mix'",
            "4: last.weight.1; stays: it meets the input 'x' in 'last'",
        ],
    ),
}


@pytest.mark.parametrize(("forward", "expected"), STAYING.values(), ids=STAYING)
def test_why_channels_stay(model, forward, expected):
    lstm, mix = nn.LSTM(4, 4, batch_first=True), nn.Conv2d(4, 4, 3, padding=1)
    assert inner(model, forward, lstm=lstm, mix=mix) == expected


COUPLING = {
    "a shuffled tensor that is computed on": (
        lambda self, x: x.view(2, 2, 2, 4, 4).transpose(1, 2).relu().reshape(x.shape),
        ["2: first.weight.0 x2, first.bias.0 x2, last.weight.1 x2"],
    ),
    "branches that are added up": (
        lambda self, x: torch.stack([x, self.mix(x)], 2).mean(2),
        ["4: first.weight.0, first.bias.0, mix.weight.0, mix.weight.1, mix.bias.0, last.weight.1"],
    ),
    "a layer called twice": (
        lambda self, x: self.mix(self.mix(x)),
        ["4: first.weight.0, first.bias.0, mix.weight.0, mix.weight.1, mix.bias.0, last.weight.1"],
    ),
    "copies that broadcast": (
        lambda self, x: x + self.row.expand(4, 4),
        [f"4: {ALL}"],
    ),
    "copies beside channels": (
        lambda self, x: torch.cat([x[:, :2], self.row.expand(2, 2, 4, 4)], 1) + x,
        [f"4: {ALL}"],
    ),
}


@pytest.mark.parametrize(("forward", "expected"), COUPLING.values(), ids=COUPLING)
def test_what_is_coupled(model, forward, expected):
    assert inner(model, forward, mix=nn.Conv2d(4, 4, 1), row=torch.rand(4)) == expected


def test_what_passes_put_on_edges(model):
    net = model(lambda self, x: self.b(torch.relu(self.a(x))), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    gm, x = capture(net, torch.randn(2, 3)), torch.randn(2, 3)
    weight, relu = (next(n for n in gm.graph.nodes if n.name == name) for name in ("a_weight", "relu"))
    scale = UniformQuantizer(4, symmetric=True, axis=0, channels=4)
    scale.set_range(-torch.ones(4), torch.ones(4))
    masked = insert(gm, weight, "a.weight_mask", Mask(torch.ones(4, 3)), list(weight.users))
    insert(gm, masked, "a.weight_quantizer", scale, list(masked.users))
    options = {"first": UniformQuantizer(4, symmetric=False), "second": Mask(torch.ones(2, 4))}
    insert(gm, relu, "relu_quantizer_choice", Choice(options, {key: {} for key in options}), list(relu.users))
    gm.recompile()
    (found,) = [line for line in shown(channel_groups(gm, x)) if "scale" in line]
    assert found == (
        "4: a.weight.0, a.weight_mask.mask.0, a.weight_quantizer.scale.0, a.weight_quantizer.zero_point.0, a.bias.0, "
        "relu_quantizer_choice.branches.1.mask.1, b.weight.1; mixed by a_weight_quantizer"
    )


def test_a_folded_batch_norm_goes_with_its_convolution(model):
    parts = {"a": nn.Conv2d(3, 4, 1), "norm": nn.BatchNorm2d(4), "b": nn.Conv2d(4, 2, 1)}
    gm = capture(model(lambda self, x: self.b(self.norm(self.a(x))), **parts).eval(), IMAGE)
    (before,) = [set(line.split(", ")) for line in shown(channel_groups(gm, IMAGE)) if "norm" in line]
    apply(FoldBatchNorm(), gm)
    (after,) = [set(line.split(", ")) for line in shown(channel_groups(gm, IMAGE)) if "norm" in line]
    assert len(before) == 7
    assert after == before


def test_islands_keep_what_passes_between_them(model):
    inside = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5))
    net = model(lambda self, x: self.head(self.body(x)) * float(x.sum() > -1e9), body=inside, head=nn.Linear(5, 2))
    x = torch.randn(2, 3)
    assert shown(channel_groups(capture(net, x, way="islands"), x)) == [
        "4: body.0.weight.0, body.0.bias.0, body.2.weight.1",
        "3: body.0.weight.1; stays: it meets the input 'body_input' in 'body_0'",
        "5: body.2.weight.0, body.2.bias.0; stays: it leaves the graph of 'body'",
        "2: head.weight.0, head.bias.0; stays: it leaves the graph of 'head'",
        "5: head.weight.1; stays: it meets the input 'head_input' in 'head'",
    ]


@pytest.mark.parametrize("kind", [Packed, Decoder, MobileBlock, Dense, SplitAttention])
def test_exported_graphs_have_the_same_groups(kind):
    x = (
        torch.tensor([[1, 5, 0, 6]])
        if kind is Decoder
        else torch.randn((2, 7, 5) if kind is Packed else (2, 3, 8, 8))
    )
    found = []
    for way in ("symbolic", "export"):
        lines = shown(channel_groups(capture(kind().eval(), x, way=way), x))
        found.append(sorted(re.sub("; (mixed by|stays).*", "", line) for line in lines))
    assert found[0] == found[1]


def test_several_outputs_and_inputs(model):
    def forward(self, x, y):
        x, z = self.a(x), self.b(y)
        return {"sum": self.c(x * z), "rest": (x.mean(), (z[:, :1] * x).sum(1))}

    net = model(forward, a=nn.Linear(3, 4), b=nn.Linear(3, 4), c=nn.Linear(4, 2))
    gm = capture(net, (torch.randn(2, 3), torch.randn(2, 3)))
    found = shown(channel_groups(gm, {"x": torch.randn(2, 3), "y": torch.randn(2, 3)}))
    units = "a.weight.0, a.bias.0, b.weight.0, b.bias.0, c.weight.1; mixed by mean"
    assert [line for line in found if "c.weight.1" in line] == [
        f"1: {units}; stays: 'getitem' takes it out alone",
        f"3: {units}",
    ]


def test_running_leaves_the_model_as_it_is(model):
    def forward(self, x):
        self.seen += 1
        return self.a(x) * self.seen

    gm = capture(model(forward, a=nn.Linear(3, 4), seen=torch.zeros(())), torch.ones(1, 3)).train()
    channel_groups(gm, torch.ones(1, 3))
    assert gm.training
    assert gm.seen == 0
