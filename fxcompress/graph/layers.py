"""Layers: the operators of the table as they stand in a graph, under qualified names."""

from dataclasses import dataclass

from torch import Tensor, fx

from fxcompress.graph.edit import get_tensor, parameter_under
from fxcompress.graph.operators import Operator, operator_of


@dataclass(frozen=True)
class Layer:
    """An operator under its qualified name, with each place where the graph calls it.

    `weight` is the qualified name of its parameter, None for an operator without one. `owner` is the first name of that
    parameter where it is tied. `bias` is the name of its bias parameter or None.
    """

    name: str
    operator: Operator
    calls: tuple[fx.Node, ...]
    weight: str | None = None
    owner: str | None = None
    bias: str | None = None

    @property
    def kind(self) -> str:
        """The operator's kind, for example `conv2d`."""
        return self.operator.kind

    @property
    def tied(self) -> bool:
        """Whether the weight is stored under an earlier layer's name."""
        return self.weight != self.owner

    def weight_edges(self) -> list[fx.Node]:
        """Return the nodes that feed the weight, each once."""
        position = self.operator.weight
        return [] if position is None else list(dict.fromkeys(call.args[position] for call in self.calls))  # type: ignore[misc]

    def bias_edges(self) -> list[fx.Node]:
        """Return the nodes that feed the bias, each once."""
        position = self.operator.bias
        edges = [] if position is None else [call.args[position] for call in self.calls]
        return list(dict.fromkeys(edge for edge in edges if isinstance(edge, fx.Node)))

    def input_edges(self) -> list[fx.Node]:
        """Return the nodes that feed the inputs, each once."""
        edges = [call.args[position] for call in self.calls for position in self.operator.inputs]
        return list(dict.fromkeys(edge for edge in edges if isinstance(edge, fx.Node)))

    def weight_tensor(self, gm: fx.GraphModule) -> Tensor:
        """Return the weight's parameter."""
        assert self.weight is not None
        return get_tensor(gm, self.weight)


def layers(gm: fx.GraphModule) -> list[Layer]:
    """Return the operators of the graph in execution order; calls that share a weight's name are one layer."""
    found: dict[str, Layer] = {}
    first_name = {id(tensor): name for name, tensor in reversed(list(gm.named_parameters(remove_duplicate=False)))}
    for node in gm.graph.nodes:
        operator = operator_of(node)
        if operator is None:
            continue
        weight = None if operator.weight is None else parameter_under(gm, node.args[operator.weight])
        name = node.name if weight is None else weight.removesuffix(".weight")
        if name in found and found[name].operator is not operator:
            name = node.name  # one parameter, two kinds of operator: each is a layer of its own
        if name in found:
            earlier = found[name]
            found[name] = Layer(name, operator, (*earlier.calls, node), weight, earlier.owner, earlier.bias)
        else:
            bias = None if operator.bias is None else parameter_under(gm, node.args[operator.bias])
            owner = None if weight is None else first_name.get(id(get_tensor(gm, weight)), weight)
            found[name] = Layer(name, operator, (node,), weight, owner, bias)
    return list(found.values())
