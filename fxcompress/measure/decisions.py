"""Decisions: the open Choices of a graph, gathered into what must be decided together."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import networkx as nx
from torch import Tensor, fx

from fxcompress.errors import PolicyError
from fxcompress.graph import Layer, layers
from fxcompress.graph.edit import chain_under, module_of, tensor_of_choice
from fxcompress.nn import Choice

_MOST_OPTIONS = 4096

Run = tuple[str, ...]  # the Choices on one edge, in the order they are applied


@dataclass(frozen=True)
class Option:
    """One way to decide: the option each Choice takes, and what that says of each layer in the policy's words."""

    label: str
    picks: Mapping[str, str]
    settings: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Decision:
    """Choices that are decided together; `chains` are the runs of them on one tensor each."""

    name: str
    chains: tuple[Run, ...]
    options: tuple[Option, ...]
    layers: tuple[str, ...]


class _Open(NamedTuple):
    """The runs of Choices on the weight and on the inputs of a layer."""

    weights: list[Run]
    inputs: list[Run]

    @property
    def names(self) -> list[str]:
        """The Choices, those of the weight first."""
        return list(itertools.chain(*self.weights, *self.inputs))


def decisions(gm: fx.GraphModule) -> list[Decision]:
    """Return the open decisions of a graph, in graph order.

    Choices on one tensor, on the inputs of one layer, and on the weight and the input of one layer (whose bits
    multiply in its bit operations) are one decision over their product. Raises PolicyError when that product is too
    large.
    """
    opened = {layer.name: _open(gm, layer) for layer in layers(gm)}
    coupled, equal = nx.Graph(), nx.Graph()
    for found in opened.values():
        nx.add_path(coupled, found.names)
        equal.add_nodes_from(found.names)
        nx.add_path(equal, itertools.chain(*found.inputs))  # one rule speaks of all inputs of a layer
    order = {str(node.target): index for index, node in enumerate(gm.graph.nodes)}
    variables: dict[str, list[str]] = {}
    for component in nx.connected_components(equal):
        variable = sorted(component, key=order.__getitem__)
        variables[variable[0]] = variable
    groups = [sorted(group, key=order.__getitem__) for group in nx.connected_components(coupled)]
    groups.sort(key=lambda group: order[group[0]])
    group_of = {name: index for index, group in enumerate(groups) for name in group}
    touched: list[dict[str, _Open]] = [{} for _ in groups]
    for layer, found in opened.items():
        if found.names:
            touched[group_of[found.names[0]]][layer] = found
    return [
        _decision(gm, [variables[name] for name in group if name in variables], layers_touched)
        for group, layers_touched in zip(groups, touched, strict=True)
    ]


def _decision(gm: fx.GraphModule, variables: Sequence[Sequence[str]], touched: Mapping[str, _Open]) -> Decision:
    labels = [choice_of(gm, variable[0]).labels for variable in variables]
    if prod(map(len, labels)) > _MOST_OPTIONS:
        raise PolicyError(
            f"{', '.join(touched)} share open tensors and must be decided together, which gives "
            f"{prod(map(len, labels)):,} options (at most {_MOST_OPTIONS:,}); write one value for input.bits there"
        )
    options = []
    for combination in itertools.product(*labels):
        picks = {name: label for variable, label in zip(variables, combination, strict=True) for name in variable}
        settings = {layer: _settings(gm, found, picks) for layer, found in touched.items()}
        options.append(Option(", ".join(combination), picks, settings))
    runs = dict.fromkeys(run for found in touched.values() for run in (*found.weights, *found.inputs))
    first = variables[0][0]
    return Decision(tensor_of_choice(first) or first, tuple(runs), tuple(options), tuple(touched))


def _settings(gm: fx.GraphModule, found: _Open, picks: Mapping[str, str]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for name in found.names:
        said |= choice_of(gm, name).settings[picks[name]]
    return said


def _open(gm: fx.GraphModule, layer: Layer) -> _Open:
    weights = [run for edge in layer.weight_edges() if (run := _run(gm, edge))]
    return _Open(weights, [run for edge in layer.input_edges() if (run := _run(gm, edge))])


def _run(gm: fx.GraphModule, edge: Any) -> Run:
    return tuple(str(node.target) for node in chain_under(gm, edge) if isinstance(module_of(gm, node), Choice))


def choice_of(gm: fx.GraphModule, name: str) -> Choice:
    """Return the Choice of that name."""
    module = gm.get_submodule(name)
    assert isinstance(module, Choice)
    return module


def perturbations(gm: fx.GraphModule, chain: Run, x: Tensor) -> Iterator[tuple[Run, Tensor]]:
    """Yield for each combination of labels of a chain the change that it makes to the tensor `x`."""
    for labels in itertools.product(*(choice_of(gm, name).labels for name in chain)):
        changed = x
        for name, label in zip(chain, labels, strict=True):
            changed = choice_of(gm, name).options[label](changed)
        yield labels, changed - x
