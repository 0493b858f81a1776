"""The strategy of policies for a captured model: steps whose rules select what is there and never disagree."""

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from fxcompress.graph import Layer
from tests.generated.strategy import Draw

BITS = st.sampled_from([8, 4, 2, 5, 3, 6, 7, "float"])
SPARSITY = st.sampled_from([0.5, 0.0, 0.25, 0.9])
OBSERVERS = ["minmax", {"percentile": {"q": 99.0}}]
WEIGHT = st.fixed_dictionaries(
    {"bits": BITS},
    optional={
        "per": st.sampled_from(["channel", "tensor"]),
        "symmetric": st.booleans(),
        "observer": st.sampled_from([*OBSERVERS, "mse"]),
    },
)
INPUT = st.fixed_dictionaries(
    {"bits": BITS, "symmetric": st.booleans(), "observer": st.sampled_from(OBSERVERS)},
)
Selection = dict[str, list[str]] | None  # of a rule; None leaves it out


@st.composite
def policies(draw: Draw, layers: Sequence[Layer]) -> dict[str, Any]:
    """Draw a policy of one to three steps: fold_batch_norm first, where it stands, as it has to."""
    makers = [_quantize] if layers else []
    if any(layer.weight is not None for layer in layers):
        makers.append(_prune)
    steps: list[dict[str, Any]] = []
    if not makers or draw(st.booleans()):
        steps.append({"kind": "fold_batch_norm"})
    if makers:
        wanted = draw(st.lists(st.sampled_from(makers), unique=True, min_size=0 if steps else 1))
        steps += [draw(make(layers)) for make in wanted]
    return {"version": 1, "steps": steps}


@st.composite
def _quantize(draw: Draw, layers: Sequence[Layer]) -> dict[str, Any]:
    """Draw rules for weights, and rules for inputs that all say the same: layers can share an input."""
    everything: list[Selection] = [{"ops": ["*"]}, *({"ops": [kind]} for kind in _kinds(layers))]
    selections = _selections(layers)
    of_weights = draw(st.lists(st.sampled_from(selections), max_size=3)) if selections else []
    of_inputs = draw(st.lists(st.sampled_from(everything), max_size=2, min_size=0 if of_weights else 1))
    entering = draw(INPUT)
    rules = [_rule(select, weight=draw(WEIGHT)) for select in of_weights]
    rules += [_rule(select, input=entering) for select in of_inputs]
    return {"kind": "quantize", "rules": draw(st.permutations(rules))}


@st.composite
def _prune(draw: Draw, layers: Sequence[Layer]) -> dict[str, Any]:
    selections = draw(st.lists(st.sampled_from(_selections(layers)), min_size=1, max_size=3))
    return {"kind": "prune", "rules": [_rule(select, sparsity=draw(SPARSITY)) for select in selections]}


def _selections(layers: Sequence[Layer]) -> list[Selection]:
    """Return how to select all weights, those of a kind, or one: layers that share a weight always together.

    Weights that are computed and not parameters are left out: no edit can sit on them.
    """
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        if layer.owner is not None:
            groups.setdefault(layer.owner, []).append(layer)
    apart = {layer.kind for layer in layers if layer.operator.weight is not None and layer.weight is None}
    mixed = {layer.kind for group in groups.values() for layer in group if len(_kinds(group)) > 1}
    weighted = [layer for group in groups.values() for layer in group]
    found: list[Selection] = [] if apart or not weighted else [None]
    found += [{"ops": [kind]} for kind in _kinds(weighted) if kind not in mixed | apart]
    return found + [{"names": [layer.name for layer in group]} for group in groups.values()]


def _kinds(layers: Sequence[Layer]) -> list[str]:
    return sorted({layer.kind for layer in layers})


def _rule(select: Selection, **says: Any) -> dict[str, Any]:
    return says if select is None else {"select": select, **says}
