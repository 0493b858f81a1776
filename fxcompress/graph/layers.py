"""Layers: the operators of the table as they stand in a graph, under qualified names."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, fx

from fxcompress.graph.edit import get_tensor, parameter_under
from fxcompress.graph.operators.calls import Operator, argument_node, operator_of
from fxcompress.graph.scalars import scalars
from fxcompress.graph.ties import memory


@dataclass(frozen=True)
class Layer:
    """An operator under its qualified name, with each place where the graph calls it.

    `weight` is the qualified name of its parameter, None for an operator without one. `owner` is the first name of
    that parameter in the model, and `tied` tells whether an earlier layer has the same. `bias` is the name of its
    bias parameter or None.
    """

    name: str
    operator: Operator
    calls: tuple[fx.Node, ...]
    weight: str | None = None
    owner: str | None = None
    bias: str | None = None
    tied: bool = False

    @property
    def kind(self) -> str:
        """The operator's kind, for example `conv2d`."""
        return self.operator.kind

    def weight_edges(self) -> list[fx.Node]:
        """Return the nodes that feed the weight, each once."""
        return self._edges([self.operator.weight])

    def bias_edges(self) -> list[fx.Node]:
        """Return the nodes that feed the bias, each once."""
        return self._edges([self.operator.bias])

    def input_edges(self) -> list[fx.Node]:
        """Return the nodes that feed the inputs, each once."""
        return self._edges(self.operator.inputs)

    def _edges(self, positions: Iterable[int | None]) -> list[fx.Node]:
        edges = (argument_node(call, position) for call in self.calls for position in positions)
        return list(dict.fromkeys(edge for edge in edges if edge is not None))

    def weight_tensor(self, gm: fx.GraphModule) -> Tensor:
        """Return the weight's parameter."""
        assert self.weight is not None
        return get_tensor(gm, self.weight)


def layers(gm: fx.GraphModule) -> list[Layer]:
    """Return the operators of the graph in execution order; calls that share a weight's name are one layer.

    A layer has the name of its weight without `.weight`. An operator without a weight, or the second kind of operator
    on one weight, has the name of its node.
    """
    calls: dict[tuple[str, Operator], list[fx.Node]] = {}
    plain = scalars(gm.graph)
    for node in gm.graph.nodes:
        operator = operator_of(node)
        if operator is not None and _is_layer(node, operator, plain):
            weight = parameter_under(gm, argument_node(node, operator.weight))
            calls.setdefault((weight or f"{node.name}()", operator), []).append(node)  # no weight has that name
    first_name = {
        memory(tensor): name for name, tensor in reversed(list(gm.named_parameters(remove_duplicate=False)))
    }
    taken = {key.removesuffix(".weight") for key, _ in calls}
    named: set[str] = set()
    owners: set[str | None] = set()
    found = []
    for (key, operator), nodes in calls.items():
        weight = parameter_under(gm, argument_node(nodes[0], operator.weight))
        name = key.removesuffix(".weight")
        if weight is None or name in named:
            name = _free(nodes[0].name, operator.kind, taken)
            taken.add(name)
        owner = None if weight is None else first_name.get(memory(get_tensor(gm, weight)), weight)
        bias = parameter_under(gm, argument_node(nodes[0], operator.bias))
        tied = weight is not None and owner in owners
        found.append(Layer(name, operator, tuple(nodes), weight, owner, bias, tied))
        named.add(name)
        owners.add(owner)
    return found


def _is_layer(node: fx.Node, operator: Operator, plain: set[fx.Node]) -> bool:
    """Return whether a call has a weight, or tensors for all of its inputs: adding a number is none."""
    flowing = [argument_node(node, position) for position in operator.inputs]
    tensors = all(one is not None and one not in plain for one in flowing)
    return operator.weight is not None or (operator.is_layer and tensors)


def _free(name: str, kind: str, taken: set[str]) -> str:
    while name in taken:
        name += f".{kind}"
    return name
