"""supernet: offers alternatives for a layer as a Choice, of which only the active one is computed."""

from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from fxcompress.errors import PassError
from fxcompress.graph import Layer
from fxcompress.graph.edit import constant_value
from fxcompress.nn import Choice
from fxcompress.nn.functional import central_kernel
from fxcompress.passes.apply import apply, selected_layers
from fxcompress.passes.inline import inline
from fxcompress.policies import Supernet
from fxcompress.policies.rules import is_open

_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
_WEIGHT, _BIAS, _STRIDE, _PADDING, _DILATION = 1, 2, 3, 4, 5


@apply.register
def supernet(spec: Supernet, gm: fx.GraphModule) -> None:
    """Offer other kernel sizes for convolutions; one size where a single value is written.

    A smaller kernel is the centre of the layer's own weight (as in Once-for-All, Cai et al. 2020, without its
    transformation matrices). A larger one has a weight of its own that starts as the layer's weight padded with zeros,
    so that it computes the same at first. Padding is adapted so that the output keeps its size. An open Choice starts
    with the layer as it was. Raises PassError for a layer that is not a convolution or whose padding is too small.
    """
    for layer, rule, at in selected_layers(spec, gm):
        if layer.kind not in _CONVOLUTIONS:
            raise PassError(
                f"{at}: {layer.name!r} is a {layer.kind}; kernel_size applies to {', '.join(_CONVOLUTIONS)}"
            )
        sizes = rule.kernel_size if is_open(rule.kernel_size) else (rule.kernel_size,)
        options = {f"kernel_{size}": _convolution(layer, size, at, gm) for size in sizes}
        if is_open(rule.kernel_size):
            _offer(layer, options, {f"kernel_{size}": {"kernel_size": size} for size in sizes}, gm)
        else:
            _replace(layer, *next(iter(options.items())), gm)
    gm.recompile()


def _offer(layer: Layer, options: dict[str, nn.Module], settings: dict[str, Any], gm: fx.GraphModule) -> None:
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
            f"{at}: {layer.name!r} has kernel {tuple(own.shape[2:])}; kernel_size needs an odd, square one"
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
