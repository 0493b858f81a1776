"""supernet: offers alternatives for a layer as a Choice, of which only the active one is computed."""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from fxcompress.errors import PassError
from fxcompress.graph import Layer
from fxcompress.graph.edit import constant_value, inserted, module_of
from fxcompress.nn import Choice
from fxcompress.nn.functional import central_kernel
from fxcompress.passes.apply import apply, selected_layers
from fxcompress.passes.inline import inline
from fxcompress.policies import Supernet
from fxcompress.policies.rules import is_open

_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
_WEIGHT, _BIAS, _PADDING, _DILATION = 1, 2, 4, 5  # places in the arguments of a convolution


@apply.register
def supernet(spec: Supernet, gm: fx.GraphModule) -> None:
    """Offer other kernel sizes for convolutions; one size where a single value is written.

    A smaller kernel is the centre of the layer's own weight (as in Once-for-All, Cai et al. 2020, without its
    transformation matrices). A larger one has a weight of its own that starts as the layer's weight padded with
    zeros, so that it computes the same at first. Padding is adapted so that the output keeps its size. An open Choice
    starts with the layer's own size where that is offered, else with the first size. Raises PassError for a layer
    that is not a convolution, whose padding is too small, that is called in different ways, or whose weight an
    earlier step has quantized or pruned.
    """
    for layer, rule, at in selected_layers(spec, gm):
        if layer.kind not in _CONVOLUTIONS:
            raise PassError(
                f"{at}: {layer.name!r} is a {layer.kind}; kernel_size applies to {', '.join(_CONVOLUTIONS)}"
            )
        _refuse_unclear(layer, at, gm)
        sizes = rule.kernel_size if is_open(rule.kernel_size) else (rule.kernel_size,)
        options = {f"kernel_{size}": _convolution(layer, size, at, gm) for size in sizes}
        if is_open(rule.kernel_size):
            _offer(layer, options, {f"kernel_{size}": {"kernel_size": size} for size in sizes}, gm)
        else:
            _replace(layer, *next(iter(options.items())), gm)
    gm.recompile()


def _refuse_unclear(layer: Layer, at: str, gm: fx.GraphModule) -> None:
    for edge in layer.weight_edges():
        if inserted(gm, edge):
            raise PassError(
                f"{at}: the weight of {layer.name!r} already has {module_of(gm, edge)} from an earlier step; state "
                "supernet before it"
            )
    ways = {repr((call.args[_WEIGHT], call.args[_BIAS] is None, call.args[_BIAS + 1 :])) for call in layer.calls}
    if len(ways) > 1:
        raise PassError(
            f"{at}: {layer.name!r} is called in different ways (weight folded twice, bias, stride, padding, dilation "
            "or groups); one kernel_size cannot speak of all"
        )


def _offer(
    layer: Layer, options: Mapping[str, fx.GraphModule], settings: Mapping[str, Any], gm: fx.GraphModule
) -> None:
    own = f"kernel_{_own_size(layer, gm)}"
    choice = Choice(options, settings, active=own if own in options else next(iter(options)))
    name = f"{layer.name}_choice"
    gm.add_submodule(name, choice)
    for call in layer.calls:
        with gm.graph.inserting_before(call):
            node = gm.graph.call_module(name, _inputs(call))
        call.replace_all_uses_with(node)
        gm.graph.erase_node(call)
        node.name = call.name  # a free name again: what follows is named after it


def _replace(layer: Layer, label: str, option: fx.GraphModule, gm: fx.GraphModule) -> None:
    for call in layer.calls:
        inline(gm, call, option, _inputs(call), f"{layer.name}.{label}")


def _inputs(call: fx.Node) -> tuple[Any, ...]:
    return tuple(call.args[i] for i in (0, _WEIGHT, _BIAS) if isinstance(call.args[i], fx.Node))


def _own_size(layer: Layer, gm: fx.GraphModule) -> int:
    return int(constant_value(gm, layer.weight_edges()[0]).shape[-1])


def _convolution(layer: Layer, size: int, at: str, gm: fx.GraphModule) -> fx.GraphModule:
    """Return the layer with another kernel size as a graph of (input, weight, bias)."""
    call = layer.calls[0]
    own = constant_value(gm, layer.weight_edges()[0])
    if len(set(own.shape[2:])) > 1 or own.shape[-1] % 2 == 0:
        raise PassError(
            f"{at}: {layer.name!r} has kernel {tuple(own.shape[2:])}; kernel_size needs an odd number, the same "
            "along each axis"
        )
    root, graph = nn.Module(), fx.Graph()
    names = ("input", "weight", "bias")[: len(_inputs(call))]
    nodes = {name: graph.placeholder(name) for name in names}
    grown = (size - own.shape[-1]) // 2
    if grown > 0:
        root.weight = nn.Parameter(F.pad(own, [grown] * 2 * (own.dim() - 2)).clone())
        nodes["weight"] = graph.get_attr("weight")
    elif grown < 0:
        nodes["weight"] = graph.call_function(central_kernel, (nodes["weight"], -grown))
    arguments = list(call.args)
    arguments[:3] = [nodes["input"], nodes["weight"], nodes.get("bias")]
    arguments[_PADDING] = _padding(call.args[_PADDING], call.args[_DILATION], grown, own.dim() - 2, layer.name, at)
    graph.output(graph.call_function(call.target, tuple(arguments)))  # type: ignore[arg-type]
    return fx.GraphModule(root, graph, "Convolution")


def _padding(padding: Any, dilation: Any, grown: int, dims: int, name: str, at: str) -> Any:
    if padding == "same" or grown == 0:
        return padding
    before = (0,) * dims if padding == "valid" else (padding,) * dims if isinstance(padding, int) else tuple(padding)
    step = (dilation,) * dims if isinstance(dilation, int) else tuple(dilation)
    after = tuple(p + grown * d for p, d in zip(before, step, strict=True))
    if min(after) < 0:
        raise PassError(
            f"{at}: {name!r} has padding {padding}; a kernel smaller by {-2 * grown} would change the output's size"
        )
    return after
