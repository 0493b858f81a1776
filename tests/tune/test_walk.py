"""What the walk says flows through a part: the float model's values, and those with everything before quantized."""

import pytest
import torch
from torch import nn

from fxcompress import transform
from fxcompress.graph.inputs import batches
from fxcompress.tune.walk import Walk
from fxcompress.tune.weights import float_weight, store

WAYS = ["symbolic", "export", "islands"]


@pytest.fixture
def walked(net, images, tuned):
    """Return a function that gives a quantized graph and the walk over it."""

    def begin(way, **how):
        gm = transform(net, tuned(), data=images, capture=way)
        return gm, Walk(gm, lambda: (batch.inputs for batch in batches(gm, images)), **how)

    return begin


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_float_values_are_those_of_the_original_although_weights_change(walked, net, images, way):
    gm, walk = walked(way)
    ends = []
    for stretch in walk.stretches():
        ends.append([value for (value,) in stretch.float(stretch.part.gives[-1])])
        for one in stretch.weights:
            store(gm, one, float_weight(gm, one) * 0.5)
        after = [value for (value,) in stretch.float(stretch.part.gives[-1])]
        assert all(torch.equal(a, b) for a, b in zip(ends[-1], after, strict=True))
    for x, found in zip(images, ends[-1], strict=True):
        close(found, net(x))


@pytest.mark.parametrize("way", WAYS)
def test_quantized_values_are_those_of_the_graph_as_it_is_now(walked, images, way):
    gm, walk = walked(way)
    for stretch in walk.stretches():
        for one in stretch.weights:
            store(gm, one, float_weight(gm, one) * 0.5)
        ends = [value for (value,) in stretch.quantized(stretch.part.gives[-1])]
    for x, found in zip(images, ends, strict=True):
        close(found, gm(x))


@pytest.mark.parametrize("way", WAYS)
def test_a_second_walk_still_knows_the_float_model(walked, net, images, way):
    gm, walk = walked(way, several=True)
    for _ in range(2):
        for stretch in walk.stretches():
            ends = [value for (value,) in stretch.float(stretch.part.gives[-1])]
            for one in stretch.weights:
                store(gm, one, float_weight(gm, one) * 0.5)
        for x, found in zip(images, ends, strict=True):
            close(found, net(x))


def test_one_walk_holds_the_parameters_of_one_part(walked):
    _, walk = walked("symbolic")
    for _ in walk.stretches():
        assert len(walk._originals) <= 6
    assert not walk._originals


def test_both_streams_can_be_read_side_by_side(walked):
    _, walk = walked("symbolic")
    stretch = next(iter(walk.stretches()))
    last = stretch.part.gives[-1]
    apart = [value for (value,) in stretch.quantized(last)], [value for (value,) in stretch.float(last)]
    together = list(zip(stretch.quantized(last), stretch.float(last), strict=True))
    for index, ((quantized,), (original,)) in enumerate(together):
        assert torch.equal(quantized, apart[0][index])
        assert torch.equal(original, apart[1][index])


def test_a_walk_without_reference_keeps_nothing_of_the_float_model(walked, images):
    gm, walk = walked("symbolic")
    for stretch in walk.stretches(reference=False):
        assert not stretch.original
        assert not walk._originals
        ends = [value for (value,) in stretch.quantized(stretch.part.gives[-1])]
    close(ends[0], gm(images[0]))


def test_a_tied_weight_is_tuned_in_the_first_part_that_reads_it(images):
    layer = nn.Linear(8, 8)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), layer, nn.ReLU(), layer).eval()
    policy = {"version": 1, "steps": [{"kind": "quantize", "rules": [{"weight": {"bits": 4}}]}]}
    gm = transform(model, policy, data=images)
    walk = Walk(gm, lambda: (batch.inputs for batch in batches(gm, images)))
    found = [[one.layer.name for one in stretch.weights] for stretch in walk.stretches()]
    assert found == [["1"], ["2"], []]


def test_only_what_crosses_is_held(images):
    """Of a chain of layers one value a batch, whatever its length."""
    model = nn.Sequential(nn.Flatten(), *(nn.Linear(192, 192) for _ in range(12))).eval()
    policy = {"version": 1, "steps": [{"kind": "quantize", "rules": [{"weight": {"bits": 4}}]}]}
    gm = transform(model, policy, data=images)
    walk = Walk(gm, lambda: (batch.inputs for batch in batches(gm, images)))
    held = [[len(values) for values in (*one.before, *one.original)] for one in walk.stretches()]
    assert held == [[1] * 8] * 12
