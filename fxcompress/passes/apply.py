"""The one way into every pass, and how a pass finds the layers that its rules speak of."""

import warnings
from collections.abc import Sequence
from functools import singledispatch
from typing import Any, NamedTuple

from torch import fx

from fxcompress.errors import PassError
from fxcompress.graph import Layer, layers
from fxcompress.graph.operators.calls import KINDS
from fxcompress.policies import RuleStep, Step
from fxcompress.policies.rules import Matched, Subject, match, place


@singledispatch
def apply(spec: Step, gm: fx.GraphModule) -> None:
    """Edit the graph in place as one step of a policy says; register a pass of your own with `@apply.register`.

    Raises PassError when the edit cannot be made and PolicyError when a rule selects nothing.
    """
    raise PassError(
        f"no pass is registered for {type(spec).__name__}; register one with @fxcompress.passes.apply.register"
    )


def select(spec: RuleStep, gm: fx.GraphModule) -> list[Matched[Any]]:
    """Return what the rules of a step say of each operator of the graph that they select."""
    found = [(layer, layer.operator.weight is not None) for layer in layers(gm)]
    subjects = [Subject(layer.name, layer.kind, has, has and layer.weight is None) for layer, has in found]
    return match(spec.rules, subjects, KINDS, spec.kind)


@singledispatch
def changed(spec: Step, gm: fx.GraphModule, matched: Sequence[Matched[Any]]) -> Sequence[Matched[Any]]:
    """Return those of the matches that a step has changed: a plan holds no others, which it left with a warning."""
    return matched


class Selected(NamedTuple):
    """A layer, what the rules say of it together, and where the last of them stands."""

    layer: Layer
    rule: Any
    at: str


def selected_layers(spec: RuleStep, gm: fx.GraphModule) -> Sequence[Selected]:
    """Return the layers that the rules of a step select, in graph order."""
    by_name = {layer.name: layer for layer in layers(gm)}
    found: list[Selected] = []
    for subject, rule, by in select(spec, gm):
        at = place(spec.rules[by[-1]], spec.kind, by[-1])
        found.append(Selected(by_name[subject.name], rule, at))
    return found


def has_computed_weight(selected: Selected) -> bool:
    """Return whether a layer's weight is computed and not a parameter, so that no edit can sit on it.

    Raises PassError where a rule selects the layer by its very name.
    """
    layer = selected.layer
    if layer.weight is not None or layer.operator.weight is None:
        return False
    if layer.name in selected.rule.select.names:
        raise PassError(f"{selected.at}: the weight of {layer.name!r} ({layer.kind}) {_COMPUTED}")
    return True


def warn_of_computed(skipped: Sequence[Selected]) -> None:
    """Warn of layers that stay as they are because their weights are computed."""
    if skipped:
        names = ", ".join(repr(one.layer.name) for one in skipped[:3])
        names += f" and {len(skipped) - 3} more" if len(skipped) > 3 else ""
        message = f"{skipped[0].at}: the weight of {names} stays as it is: it {_COMPUTED}"
        warnings.warn(message, stacklevel=2)


_COMPUTED = (
    "is computed from a parameter, and is not one; give the layer a parameter of its own, or where a parametrization "
    "computes it, call torch.nn.utils.parametrize.remove_parametrizations before"
)
