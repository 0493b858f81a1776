"""Generated models: the graph computes what the model does, in both modes, forward and backward, in every way."""

import copy
import re
from collections import Counter

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.conv import _ConvNd

from fxcompress.graph import capture, layers, text, verify
from fxcompress.graph.module_kinds import is_kept, is_opaque
from tests.generated.checks import assert_same, behaviour, examples
from tests.generated.program import Program
from tests.generated.strategy import programs

LAYERS = (nn.Linear, nn.Embedding, _ConvNd)
WAYS = st.sampled_from(["symbolic"] * 12 + ["islands"] * 3 + ["export"])  # an export takes a second


def has_regions(model: nn.Module) -> bool:
    """Return whether islands can see something of a model, or it has nothing to see."""
    inside = [module for module in model.modules() if module is not model and not is_kept(module)]
    return any(list(module.parameters(recurse=False)) for module in inside) or not list(model.parameters())


def is_all_read(program: Program) -> bool:
    """Return whether every value of a program is used; a graph leaves out what is not, the model's Python does not."""
    return min(Counter(re.findall(r"\bv\d+\b(?!\.\w+_\()", str(program))).values(), default=2) > 1


@examples
@given(programs(), WAYS)
def test_capture_is_exact(program: Program, way: str):
    model = program.model()
    assume(way != "islands" or has_regions(model))
    before = copy.deepcopy(model.state_dict())
    gm = capture(model, program.batch(2), way=way)
    verify(gm)
    text(gm)
    assert list(gm.state_dict()) == list(before)
    assert_same(model.state_dict(), before)
    inputs = program.batch(3)
    for training in (False, True):
        found, expected = behaviour(gm, inputs, training), behaviour(model, inputs, training)
        if way != "symbolic":  # sums the gradients of a tensor that is given twice in another order
            torch.testing.assert_close(found.pop("gradients"), expected.pop("gradients"))
        assert_same(found, expected)


@examples
@given(programs(), st.sampled_from(["islands"] * 9 + ["export"]))
def test_the_layers_are_the_same(program: Program, way: str):
    def named(way: str) -> list[tuple[str, str]]:
        return [(layer.name, layer.kind) for layer in layers(capture(program.model(), program.batch(2), way=way))]

    model = program.model()
    assume(way != "islands" or has_regions(model))
    looks_into_all = not any(map(is_opaque, model.modules()))
    expected, found = named("symbolic" if looks_into_all else "export"), named(way)
    if way == "islands":  # does not see what the model's own forward computes
        modules = {name for name, module in model.named_modules() if isinstance(module, LAYERS)}
        assert set(found) <= set(expected) or not is_all_read(program)
        assert {name for name, _ in expected} & modules <= {name for name, _ in found}
    else:
        assert found == expected
