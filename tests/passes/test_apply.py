"""apply: dispatch on the type of the step, and a third party's own pass."""

import pytest
from torch import fx, nn

from fxcompress.errors import PassError
from fxcompress.graph import capture
from fxcompress.passes import apply
from fxcompress.policies import Step


class Unknown(Step):
    """A step that no pass is registered for."""

    kind: str = "tests:Unknown"


class Rename(Step):
    """A step of a third party."""

    kind: str = "tests:Rename"
    name: str


@apply.register
def rename(spec: Rename, gm: fx.GraphModule) -> None:
    """Rename the last operation."""
    gm.graph.output_node().args[0].name = spec.name


def test_a_step_without_a_pass():
    message = "no pass is registered for Unknown; register one with @fxcompress.passes.apply.register"
    with pytest.raises(PassError, match=message):
        apply(Unknown(), capture(nn.Sequential(nn.ReLU())))


def test_a_pass_of_a_third_party(do, reads):
    reads(
        do(capture(nn.Sequential(nn.Linear(2, 2))), Rename(name="last")),
        """
        input_1: input
        last = linear(input_1, 0.weight, 0.bias)
        return last
        """,
    )
