"""The strategy of generated models: valid by construction, and shrinking to few and simple lines."""

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st

from tests.generated.any_rank import ANY_RANK, FOLLOWED_BY_NO_TRACE
from tests.generated.body import Body, Value
from tests.generated.images import IMAGES
from tests.generated.program import Input, Program
from tests.generated.sequences import FEATURES, SEQUENCES

BY_RANK = {1: (*ANY_RANK, *FEATURES), 2: (*ANY_RANK, *SEQUENCES), 3: (*ANY_RANK, *IMAGES)}
CLASSES = 10
Draw = Callable[[st.SearchStrategy[Any]], Any]


@st.composite
def programs(draw: Draw, own_python: bool = False, dead: bool = True, largest: int = 12) -> Program:
    """Draw a model of up to `largest` operators, which returns one value or several in a tuple, list or dict.

    With `own_python` it also does what only Python can follow, such as a branch on a value. Without `dead`, what it
    returns depends on all that it computes.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = Body(draw, draw(_inputs()))
        _begin(body)
        for _ in range(largest):
            if not draw(_operator(body, own_python)):
                break
        return body.program(_result(body, dead), keywords=draw(st.integers(0, 7)) == 7)


@st.composite
def _inputs(draw: Draw) -> tuple[Input, ...]:
    channels, size = draw(st.sampled_from([4, 3, 2, 1, 6, 8])), draw(st.sampled_from([4, 5, 6, 3, 1]))
    features, image = Input("x", (channels,)), Input("x", (channels, size, size))
    joined = [image.shape, (channels, 1, 1), (1, size, size)]
    return draw(
        st.one_of(
            st.just((features,)),
            st.just((image,)),
            st.just((image,)),
            st.just((Input("x", (size, channels)),)),
            st.just((Input("x", (size,), CLASSES),)),
            st.just((features, Input("y", features.shape))),
            st.sampled_from(joined).map(lambda shape: (image, Input("y", shape))),
        )
    )


def _begin(body: Body) -> None:
    """Make the inputs values that can be read, whole numbers through an embedding."""
    for one in body.inputs:
        if one.classes is None:
            body.values.append(Value(one.name, one.shape))
            continue
        size = body.choose(4, 6, 3)
        way = body.choose("", ", padding_idx=0", "function")
        if way == "function":
            body.line(f"F.embedding({one.name}, {body.parameter('table', CLASSES, size)})")
        else:
            body.line(f"{body.part('embedding', f'nn.Embedding({CLASSES}, {size}{way})')}({one.name})")


@st.composite
def _operator(draw: Draw, body: Body, own_python: bool) -> bool:
    """Write one operator on a value, mostly the latest; or end, one time in sixteen, which is the simplest."""
    if body.forward and draw(st.integers(0, 15)) == 0:
        return False
    latest, *others = body.fitting(lambda value: True)
    x = draw(st.sampled_from(others)) if others and draw(st.integers(0, 3)) == 3 else latest
    table = BY_RANK[len(x.shape)] + (FOLLOWED_BY_NO_TRACE if own_python else ())
    rows = [row for row in table if row.fits(body, x) for _ in range(row.often)]
    draw(st.sampled_from(rows)).write(body, x)
    return True


def _result(body: Body, dead: bool) -> str:
    """Return the latest value, all that nothing reads, or some in a structure."""
    latest, *others = (value.name for value in body.fitting(lambda value: True))
    unread = ", ".join(value.name for value in body.unread()) or latest
    whole = (f"{unread},", f"[{unread}]", f"{{'first': {latest}, 'others': ({unread},)}}")
    if not dead:
        return body.choose(*whole)
    other = body.choose(*others) if others else latest
    return body.choose(latest, *whole, f"{latest}, None, {{'others': [{other}, 1]}}")
