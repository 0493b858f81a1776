"""quantize: puts quantizers on weights and on the inputs of operators, or a Choice of them where bits are open."""

import torch
from torch import fx, nn

from fxcompress.errors import PolicyError
from fxcompress.graph.edit import QUANTIZER, QUANTIZER_CHOICE, constant_value, insert
from fxcompress.nn import Choice, Quantizer
from fxcompress.passes.apply import apply
from fxcompress.passes.placements import Placement, placements
from fxcompress.passes.quantizer_options import options
from fxcompress.passes.targets import TARGETS, complete
from fxcompress.passes.tensors import end_of_chain, refuse_second
from fxcompress.policies import Quantize
from fxcompress.policies.base import nearest
from fxcompress.policies.quantizing import InputSpec


@apply.register
def quantize(spec: Quantize, gm: fx.GraphModule) -> None:
    """Put a quantizer on each weight and input that the rules name; each is named after its tensor.

    Layers that share a tensor share its quantizer. A target puts quantizers beside those of the rules, and lets
    tensors share one, where its integer kernels need it. Raises PassError when two rules disagree on one tensor, and
    PolicyError for a rule without bits, for a token where there is none, for bits that the target cannot run and for
    a range that nothing takes. Warns of layers whose weight is computed, which stays as it is.
    """
    placed = placements(spec, gm)
    if spec.target is not None and spec.target in TARGETS:
        complete(placed, gm, spec.target)
    inputs = {name: one.spec for name, one in placed.items() if isinstance(one.spec, InputSpec)}
    for name in spec.ranges:
        where = spec.at or spec.kind
        if name not in inputs:
            raise PolicyError(f"{where}: ranges: no rule quantizes an input named {name!r}{nearest(name, inputs)}")
        if inputs[name].dynamic:
            raise PolicyError(f"{where}: ranges: {name!r} is quantized with 'dynamic: true' and takes no range")
    for name, placement in placed.items():
        _insert(gm, name, placement, spec.ranges.get(name))
    gm.recompile()


def _insert(gm: fx.GraphModule, name: str, placement: Placement, known: tuple[float, float] | None) -> None:
    node = next(iter(placement.nodes))
    offered = options(
        placement.spec, placement.layer.operator.out_axis, lambda: constant_value(gm, end_of_chain(gm, node)).shape
    )
    for option in offered if known is not None else ():
        if isinstance(option.module, Quantizer):
            option.module.set_range(*torch.tensor(known, dtype=torch.float64))
    module, suffix = offered[0].module, QUANTIZER
    if len(offered) > 1:
        modules = {option.label: option.module for option in offered}
        module, suffix = Choice(modules, {option.label: option.settings for option in offered}), QUANTIZER_CHOICE
    elif isinstance(module, nn.Identity):
        return
    for node, users in placement.nodes.items():
        refuse_second(gm, node, Quantizer, placement.at)
        insert(gm, end_of_chain(gm, node), f"{name}{suffix}", module, users)
