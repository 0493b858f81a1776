"""The walk over a graph, part by part: what flows into each part in float, and with all before it quantized."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from fxcompress.graph.edit import get_tensor, module_of
from fxcompress.graph.regions import Islands, Region, bound, regions
from fxcompress.graph.ties import memory
from fxcompress.heap import trim
from fxcompress.measure.float_mode import float_mode
from fxcompress.nn import Quantizer
from fxcompress.tune.arrivals import Arrivals, Inputs, Values
from fxcompress.tune.parts import Part, constants_of, parts
from fxcompress.tune.region_links import links
from fxcompress.tune.weights import QuantizedWeight, quantized_weights

Instead = Mapping[fx.Node, Callable[..., Any]]  # functions that are called in the place of what some nodes call


class _Runner(fx.Interpreter):
    """Runs single nodes of a graph."""

    def __init__(self, gm: fx.GraphModule, instead: Instead) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.extra_traceback = False  # an error says what it says, not in which node
        self._instead = instead

    def run_node(self, n: fx.Node) -> Any:
        if n not in self._instead:
            return super().run_node(n)
        args, _ = self.fetch_args_kwargs_from_env(n)
        return self._instead[n](*args)


def run(gm: fx.GraphModule, nodes: Sequence[fx.Node], values: Values, instead: Instead | None = None) -> Values:
    """Return `values` together with what `nodes` give, run in order on them."""
    runner = _Runner(gm, instead or {})
    runner.env = dict(values)
    for node in nodes:
        runner.env[node] = runner.run_node(node)
    return runner.env


class Stretch(NamedTuple):
    """A part of the walk with what flows into it, batch by batch.

    `before` is what comes from the parts before it, quantized as they are now; `original` what comes in the float
    model, and `untouched` gives what its nodes are there.
    """

    gm: fx.GraphModule
    part: Part
    weights: tuple[QuantizedWeight, ...]
    before: list[Values]
    original: list[Values]
    untouched: Instead

    def quantized(self, *wanted: fx.Node) -> Iterator[tuple[Any, ...]]:
        """Yield for each batch what nodes of the part give with their quantizers on."""
        return self._values(self.before, wanted, {})

    def float(self, *wanted: fx.Node) -> Iterator[tuple[Any, ...]]:
        """Yield for each batch what nodes of the part give in the float model, as it was before any tuning."""
        return self._values(self.original, wanted, self.untouched)

    @torch.no_grad()
    def _values(self, before: list[Values], wanted: Sequence[fx.Node], instead: Instead) -> Iterator[tuple[Any, ...]]:
        needed = self.part.needed(wanted)
        constants = run(self.gm, [node for node in self.part.constants if node in needed], {}, instead)
        nodes = [node for node in self.part.nodes if node in needed]
        for values in before:
            found = run(self.gm, nodes, constants | values, instead)
            yield tuple(found[node] for node in wanted)

    def pass_on(self) -> None:
        """Put what the part gives in the place of what flows into it."""
        for index, given in enumerate(self.quantized(*self.part.gives)):
            self.before[index] = dict(zip(self.part.gives, given, strict=True))
        for index, given in enumerate(self.float(*self.part.gives)):
            self.original[index] = dict(zip(self.part.gives, given, strict=True))


class Walk:
    """Goes over a quantized graph in the order in which it runs, as often as it is asked to.

    What crosses from one part to the next is held for all batches, and the parameters of one part as they were before
    tuning. `several` says that walks that tune follow one another: then those of all parts are held, and also in a
    model captured by islands, where a region is reached by running the model up to it.
    """

    def __init__(self, gm: fx.GraphModule, inputs: Inputs, *, several: bool = False) -> None:
        self.gm, self.inputs = gm, inputs
        self._originals: dict[Any, Tensor] = {}  # by the memory of the parameter
        self._several = several
        self._holds_all = several or isinstance(gm, Islands)
        self._readers = Counter(
            memory(get_tensor(gm, str(node.target))) for node in gm.graph.find_nodes(op="get_attr")
        )

    @cached_property
    def outside(self) -> Collection[Any]:
        """The tensors, by memory, that the model's own Python reads between the regions."""
        first = next(iter(self.inputs())) if isinstance(self.gm, Islands) else None
        return () if first is None else links(self.gm, first).read

    def weights(self) -> list[QuantizedWeight]:
        """Return the quantized weights as they are now."""
        return quantized_weights(self.gm, self.outside)

    def stretches(self, *, reference: bool = True) -> Iterator[Stretch]:
        """Yield part after part; change its parameters and scales before asking for the next.

        A weight that several parts read is among those of the first. Without `reference` the stretches know
        nothing of the float model, which halves the work and holds no parameters.
        """
        waiting = self.weights()
        layers = frozenset(call for one in waiting for call in one.calls)
        now, then = (Arrivals(self.gm, self.inputs) if isinstance(self.gm, Islands) else None for _ in range(2))
        for index, region in enumerate(regions(self.gm)):
            if layers.isdisjoint(region.nodes):
                continue
            before = self._into(region, index, now)
            original = self._into_in_float(region, index, then) if reference else []
            cut = parts(self.gm, region, layers)
            for part in cut:
                here = tuple(one for one in waiting if not set(one.calls).isdisjoint(part.nodes))
                waiting = [one for one in waiting if one not in here]
                untouched = self._untouched(part, layers) if reference or self._several else {}
                stretch = Stretch(self.gm, part, here, before, original, untouched)
                yield stretch
                if part is not cut[-1]:
                    stretch.pass_on()
                self._drop(part)
                trim()

    def _untouched(self, part: Part, layers: frozenset[fx.Node]) -> Instead:
        """Keep the parameters that tuning a part may change, and return what its nodes give in the float model."""
        instead: dict[fx.Node, Callable[..., Any]] = {}
        tuned = constants_of(part.constants, [node for node in part.nodes if node in layers])
        for node in (*part.constants, *part.nodes):
            if node.op == "get_attr":
                tensor = get_tensor(self.gm, str(node.target))
                if node in tuned:
                    tensor = self._originals.setdefault(memory(tensor), tensor.detach().clone())
                instead[node] = partial(_given, tensor)
            elif isinstance(module_of(self.gm, node), Quantizer):
                instead[node] = _same
        return instead

    def _drop(self, part: Part) -> None:
        for node in part.constants if not self._holds_all else ():
            if node.op == "get_attr":
                key = memory(get_tensor(self.gm, str(node.target)))
                if self._readers[key] == 1:  # no other part asks for it
                    self._originals.pop(key, None)

    @torch.no_grad()
    def _into(self, region: Region, index: int, arrivals: Arrivals | None) -> list[Values]:
        """Return what flows into a region, call by call."""
        if arrivals is None:
            return [bound(self.gm, region, *arguments) for arguments in self.inputs()]
        return arrivals.into(index)

    def _into_in_float(self, region: Region, index: int, arrivals: Arrivals | None) -> list[Values]:
        self._swap()
        try:
            with float_mode(self.gm):
                return self._into(region, index, arrivals)
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange the values of parameters with those that they had before tuning."""
        tensors = {memory(tensor): tensor for tensor in self.gm.state_dict().values()}
        for key, original in self._originals.items():
            now = tensors[key].clone()
            tensors[key].copy_(original)
            original.copy_(now)


def _given(value: Any) -> Any:
    return value


def _same(x: Any) -> Any:
    return x
