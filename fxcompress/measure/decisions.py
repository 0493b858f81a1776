"""Decisions: the open Choices of a graph, gathered into what must be decided together."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import networkx as nx
from torch import Tensor, fx

from fxcompress.errors import PolicyError
from fxcompress.graph import Layer, layers
from fxcompress.graph.edit import inserted, module_of
from fxcompress.nn import Choice

_MOST_OPTIONS = 4096


@dataclass(frozen=True)
class Option:
    """One way to decide: which option each Choice takes, and what that says of each layer in the policy's words."""

    label: str
    picks: Mapping[str, str]
    settings: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Decision:
    """Choices that are decided together. `chains` are runs of Choices on one tensor, in the order they are applied."""

    name: str
    chains: tuple[tuple[str, ...], ...]
    options: tuple[Option, ...]
    layers: tuple[str, ...]


def choices_on(gm: fx.GraphModule, edge: Any) -> list[str]:
    """Return the names of the Choices that sit on an edge, in the order they are applied."""
    found: list[str] = []
    while isinstance(edge, fx.Node) and inserted(gm, edge):
        if isinstance(module_of(gm, edge), Choice):
            found.insert(0, str(edge.target))
        edge = edge.args[0]
    return found


def decisions(gm: fx.GraphModule) -> list[Decision]:
    """Return the open decisions of a graph, in graph order.

    Choices on one tensor, on the inputs of one layer, and on the weight and the input of one layer (whose bits multiply
    in its bit operations) are one decision over their product. Raises PolicyError when that product is too large.
    """
    equal, coupled = nx.Graph(), nx.Graph()
    every_layer = layers(gm)
    for layer in every_layer:
        inputs = [name for edge in layer.input_edges() for name in choices_on(gm, edge)]
        weights = [name for edge in layer.weight_edges() for name in choices_on(gm, edge)]
        equal.add_nodes_from(weights + inputs)
        nx.add_path(equal, inputs)  # one rule speaks of all inputs of a layer
        nx.add_path(coupled, weights + inputs[:1])
        nx.add_path(coupled, inputs)
        coupled.add_nodes_from(weights)
    order = {str(node.target): index for index, node in enumerate(gm.graph.nodes)}
    groups = [sorted(group, key=order.__getitem__) for group in nx.connected_components(coupled)]
    return [_decision(gm, group, equal, every_layer) for group in sorted(groups, key=lambda group: order[group[0]])]


def _decision(gm: fx.GraphModule, group: list[str], equal: nx.Graph, every_layer: list[Layer]) -> Decision:
    variables: list[list[str]] = []
    for name in group:
        if not any(name in variable for variable in variables):
            together = nx.node_connected_component(equal, name)
            variables.append([other for other in group if other in together])
    labels = [_choice(gm, variable[0]).labels for variable in variables]
    touched = {layer.name: _touching(gm, layer, group) for layer in every_layer}
    concerned = tuple(name for name, (weights, inputs) in touched.items() if weights or inputs)
    if prod(map(len, labels)) > _MOST_OPTIONS:
        raise PolicyError(
            f"{', '.join(concerned)} share open tensors and must be decided together, which gives "
            f"{prod(map(len, labels)):,} options (at most {_MOST_OPTIONS:,}); write one value for input.bits there"
        )
    options = []
    for combination in itertools.product(*labels):
        picks = {name: label for variable, label in zip(variables, combination, strict=True) for name in variable}
        settings = {
            name: {
                field: value
                for choice in (*touched[name][0], *touched[name][1])
                for field, value in _choice(gm, choice).settings[picks[choice]].items()
            }
            for name in concerned
        }
        options.append(Option(", ".join(combination), picks, settings))
    chains = _chains(gm, group, every_layer)
    return Decision(
        group[0].removesuffix("_quantizer_choice").removesuffix("_mask_choice"), chains, tuple(options), concerned
    )


def _choice(gm: fx.GraphModule, name: str) -> Choice:
    module = gm.get_submodule(name)
    assert isinstance(module, Choice)
    return module


def _touching(gm: fx.GraphModule, layer: Layer, group: list[str]) -> tuple[list[str], list[str]]:
    weights = [name for edge in layer.weight_edges() for name in choices_on(gm, edge) if name in group]
    inputs = [name for edge in layer.input_edges() for name in choices_on(gm, edge) if name in group]
    return weights, inputs


def _chains(gm: fx.GraphModule, group: list[str], every_layer: Iterable[Layer]) -> tuple[tuple[str, ...], ...]:
    runs = (
        tuple(choices_on(gm, edge)) for layer in every_layer for edge in (*layer.weight_edges(), *layer.input_edges())
    )
    return tuple(dict.fromkeys(run for run in runs if run and run[0] in group))


def perturbations(gm: fx.GraphModule, chain: tuple[str, ...], x: Tensor) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Yield for each combination of labels of a chain the change that it makes to the tensor `x`."""
    for labels in itertools.product(*(_choice(gm, name).labels for name in chain)):
        changed = x
        for name, label in zip(chain, labels, strict=True):
            changed = _choice(gm, name).options[label](changed)
        yield labels, changed - x
