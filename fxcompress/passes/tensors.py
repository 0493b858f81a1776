"""Which tensors the weights of layers are: a tied weight is one tensor, a weight folded twice is two."""

from collections import defaultdict
from typing import NamedTuple

from torch import fx

from fxcompress.errors import PassError
from fxcompress.graph import Layer, layers
from fxcompress.graph.edit import inserted, module_of, tensor_under
from fxcompress.graph.operators.calls import argument_node
from fxcompress.nn import Choice, Mask, Quantizer


class WeightTensor(NamedTuple):
    """A weight as layers see it: its name, the nodes that hold it (several when tied), and the calls that use it."""

    name: str
    nodes: tuple[fx.Node, ...]
    calls: tuple[fx.Node, ...]


def weight_tensors(gm: fx.GraphModule) -> dict[str, list[WeightTensor]]:
    """Return the weight tensors of each layer, by layer name."""
    by_owner: dict[str, list[Layer]] = defaultdict(list)
    for layer in layers(gm):
        if layer.owner is not None:
            by_owner[layer.owner].append(layer)
    return {layer.name: _tensors_of(gm, owner, tied) for owner, tied in by_owner.items() for layer in tied}


def _tensors_of(gm: fx.GraphModule, owner: str, tied: list[Layer]) -> list[WeightTensor]:
    plain: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    folded: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for layer in tied:
        for call in layer.calls:
            weight = argument_node(call, layer.operator.weight)
            assert weight is not None  # a layer with an owner has a weight
            base = tensor_under(gm, weight)
            (plain if base.op == "get_attr" else folded)[base].append(call)
    groups = [(tuple(plain), [call for calls in plain.values() for call in calls])] if plain else []
    groups += [((node,), calls) for node, calls in folded.items()]
    names = [owner, *(f"{owner}_{index}" for index in range(1, len(groups)))]
    return [WeightTensor(name, nodes, tuple(calls)) for name, (nodes, calls) in zip(names, groups, strict=True)]


def chain(gm: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """Return the inserted modules that sit on a tensor one behind the other, up to the first branching."""
    found: list[fx.Node] = []
    while True:
        following = [user for user in node.users if inserted(gm, user) and user.args[0] is node]
        if len(following) != 1:
            return found
        node = following[0]
        found.append(node)


def end_of_chain(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Return the last of the inserted modules on a tensor, the tensor itself where there is none."""
    return [node, *chain(gm, node)][-1]


def refuse_second(gm: fx.GraphModule, node: fx.Node, kind: type[Quantizer] | type[Mask], at: str) -> None:
    """Raise PassError when the tensor already carries a module of that kind, decided or open."""
    for other in chain(gm, node):
        module = module_of(gm, other)
        present = list(module.options.values()) if isinstance(module, Choice) else [module]
        if any(isinstance(one, kind) for one in present):
            raise PassError(
                f"{at}: tensor {node.name!r} already has {module} from an earlier step; state it in one step"
            )
