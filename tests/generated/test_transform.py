"""Generated models under random policies: every step applies, the result is sound, and saving it keeps every bit."""

from typing import Any

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, fx
from torch.utils import _pytree as pytree

import fxcompress
from fxcompress.errors import PassError
from fxcompress.graph import Layer, capture, layers, verify
from fxcompress.graph.edit import chain_under, module_of
from fxcompress.nn import Mask, Quantizer
from tests.generated.checks import assert_same, behaviour, double, examples
from tests.generated.compression import policies
from tests.generated.program import Program
from tests.generated.strategy import programs


def said(policy: dict[str, Any], kind: str, field: str, layer: Layer) -> Any:
    """Return what the last rule that selects a layer says of a field, None where no rule does."""
    found = None
    for step in policy["steps"]:
        for rule in step.get("rules", ()) if step["kind"] == kind else ():
            select = rule.get("select", {})
            of_kind = select.get("ops", [layer.kind]) in (["*"], [layer.kind])
            if field in rule and of_kind and layer.name in select.get("names", [layer.name]):
                found = rule[field]
    return found


def compress(program: Program, policy: dict[str, Any]) -> fx.GraphModule:
    """Compress a generated model; one whose batch norm normalizes tokens is refused, and no example then."""
    batches = [program.batch(4, seed) for seed in (1, 2)]
    try:
        return fxcompress.transform(program.model(), policy, example_inputs=program.batch(2), data=batches)
    except PassError as error:
        assume("are not the features" not in str(error))
        raise


def shapes(outputs: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda output: output.shape, outputs)


def tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


@examples
@given(programs(), st.data())
def test_a_policy_applies(program: Program, data: st.DataObject):
    model = program.model()
    before = layers(capture(model, program.batch(2)))
    policy = data.draw(policies(before), label="policy")
    small = compress(program, policy)
    verify(small)
    original, inputs = behaviour(model, program.batch(3), training=False), program.batch(3)
    found = behaviour(small, inputs, training=False)
    assert shapes(found["outputs"]) == shapes(original["outputs"])
    assert all(output.isfinite().all() for output in tensors(found["outputs"]))
    assert found["gradients"].keys() == original["gradients"].keys()
    assert_same({name: found["state"][name] for name in original["state"]}, original["state"])
    behaviour(small, inputs, training=True)
    after = layers(small)
    assert [(layer.name, layer.kind) for layer in after] == [(layer.name, layer.kind) for layer in before]
    for layer in (layer for layer in after if layer.weight is not None):
        for edge in layer.weight_edges():
            modules = [module_of(small, node) for node in chain_under(small, edge)]
            bits = [module.bits for module in modules if isinstance(module, Quantizer)]
            sparsity = [module.sparsity for module in modules if isinstance(module, Mask)]
            wanted = (said(policy, "quantize", "weight", layer) or {"bits": "float"})["bits"]
            assert bits == ([] if wanted == "float" else [wanted])
            share, size = said(policy, "prune", "sparsity", layer) or 0.0, layer.weight_tensor(small).numel()
            assert [round(one * size) for one in sparsity] == ([round(share * size)] if share else [])


@examples
@given(programs())
def test_folding_keeps_what_is_computed(program: Program):
    model = program.model().double().eval()
    example, inputs = (pytree.tree_map(double, program.batch(size)) for size in (2, 3))
    policy = {"version": 1, "steps": [{"kind": "fold_batch_norm"}]}
    try:
        small = fxcompress.transform(model, policy, example_inputs=example)
    except PassError as error:
        assert "are not the features" in str(error)  # noqa: PT017 (a norm of tokens, which cannot be folded)
        return
    found, expected = (behaviour(one, inputs, training=False)["outputs"] for one in (small, model))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, equal_nan=True)


@examples
@given(programs(), st.data())
def test_a_saved_model_is_the_same(tmp_path, program: Program, data: st.DataObject):
    policy = data.draw(policies(layers(capture(program.model()))), label="policy")
    small = compress(program, policy)
    fxcompress.save(small, tmp_path)
    again = fxcompress.load(tmp_path, program.model(seed=1), example_inputs=program.batch(2))
    inputs = program.batch(3)
    assert_same(behaviour(again, inputs, training=False), behaviour(small, inputs, training=False))
