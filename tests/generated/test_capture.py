"""Generated models: the graph computes what the model does, in both modes, forward and backward, in every way."""

import copy

from hypothesis import given
from hypothesis import strategies as st

from fxcompress.graph import capture, layers, text, verify
from tests.generated.checks import assert_same, behaviour, examples
from tests.generated.program import Program
from tests.generated.strategy import programs

WAYS = st.sampled_from(["symbolic"] * 12 + ["islands"] * 3 + ["export"])  # an export takes a second


@examples
@given(programs(), WAYS)
def test_capture_is_exact(program: Program, way: str):
    model = program.model()
    before = copy.deepcopy(model.state_dict())
    gm = capture(model, program.batch(2), way=way)
    verify(gm)
    assert text(gm)
    assert list(gm.state_dict()) == list(before)
    assert_same(model.state_dict(), before)
    inputs = program.batch(3)
    for training in (False, True):
        assert_same(behaviour(gm, inputs, training), behaviour(model, inputs, training))


@examples
@given(programs(), WAYS)
def test_the_layers_are_the_same(program: Program, way: str):
    def named(way: str) -> list[tuple[str, str]]:
        return [(layer.name, layer.kind) for layer in layers(capture(program.model(), program.batch(2), way=way))]

    assert named(way) == named("symbolic")
