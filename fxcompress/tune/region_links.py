"""Links between regions: tensors that the Python of a model hands from one region to others and does not touch."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxcompress.graph.inputs import Arguments
from fxcompress.graph.mode import eval_mode
from fxcompress.graph.regions import Islands, Region, bound, regions
from fxcompress.graph.ties import memory


class Links(NamedTuple):
    """What a model's own Python does between its regions.

    `handed` has for a value that a region returns the inputs of regions that it becomes, if nothing else is done with
    it. `read` are the tensors of the model, by memory, that code outside of regions reads.
    """

    handed: Mapping[fx.Node, Sequence[fx.Node]]
    read: Collection[Any]


class _Outside(TorchFunctionMode):
    """Notes which values of regions, and which tensors of the model, code outside of regions makes others from.

    What regions made is kept, so that the identity of a tensor tells which it is.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.own = {id(tensor): memory(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self.made: dict[int, tuple[fx.Node, Tensor]] = {}
        self.read: set[fx.Node] = set()
        self.read_of_model: set[Any] = set()
        self.depth = 0  # of regions

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.depth and _tensors(result):  # what gives none asks for a size or the like
            self.note((args, kwargs))
        return result

    def note(self, value: Any) -> None:
        """Note that the tensors in a value are read."""
        tensors = _tensors(value)
        self.read.update(node for node in map(self.source, tensors) if node is not None)
        self.read_of_model.update(self.own[id(tensor)] for tensor in tensors if id(tensor) in self.own)

    def source(self, tensor: Tensor) -> fx.Node | None:
        """Return the value of a region that a tensor is."""
        return self.made[id(tensor)][0] if id(tensor) in self.made else None


@torch.no_grad()
def links(gm: fx.GraphModule, arguments: Arguments) -> Links:
    """Run a model once and return which values of regions go to inputs of other regions and nowhere else.

    Only a single tensor that a region returns counts, as the very tensor that it is. A model captured as a whole has
    no code outside.
    """
    if not isinstance(gm, Islands):
        return Links({}, ())
    outside = _Outside(gm)
    sources: dict[fx.Node, set[fx.Node | None]] = defaultdict(set)  # of each input of a region

    def watched(region: Region, code: Callable[..., Any]) -> Callable[..., Any]:
        def call(model: fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
            outside.depth += 1
            for entered, value in bound(model, region, args, kwargs).items():
                sources[entered].update(map(outside.source, _tensors(value)))
            result = code(model, *args, **kwargs)
            returned = region.nodes[-1].args[0]
            if isinstance(result, Tensor) and isinstance(returned, fx.Node):
                outside.made[id(result)] = returned, result
            outside.depth -= 1
            return result

        return call

    with gm.calling([watched(*pair) for pair in zip(regions(gm), gm.functions, strict=True)]), eval_mode(gm), outside:
        outside.note(gm(*arguments.args, **arguments.kwargs))
    lost = outside.read.union({None}, *(some for some in sources.values() if len(some) > 1))
    handed: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for entered, some in sources.items():
        for source in some - lost:
            assert source is not None
            handed[source].append(entered)
    return Links(dict(handed), outside.read_of_model)


def _tensors(value: Any) -> Sequence[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
