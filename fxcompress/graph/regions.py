"""Regions: the parts of a model that are graphs, where the model's own Python runs between them."""

import copy
import inspect
import linecache
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import fx, nn

from fxcompress.errors import CaptureError


class Region(NamedTuple):
    """A module that is graph code: its path, and its nodes in the one graph, from its inputs to its output."""

    path: str
    nodes: list[fx.Node]


class Islands(fx.GraphModule):
    """A model whose own Python runs, with graph code in the place of the forward of some of its modules.

    `graph` holds the regions one after the other; they are not connected, and what they call and read is named from
    the model itself. Made by `put_regions`, which mixes this class into the model's own.
    """

    _lineno_map = None  # torch.compile reads it of every GraphModule
    _regions: list[str]
    _own_parts: list[str]
    functions: list[Callable[..., Any]]  # the code of the regions, of the model and the arguments of a call

    def __init__(self) -> None:
        raise TypeError("Islands is mixed into the class of a captured model, see put_regions")

    def recompile(self) -> Any:
        """Make the code of each region anew, after its nodes have changed."""
        self.functions = [_function(region) for region in regions(self)]

    @contextmanager
    def calling(self, functions: Sequence[Callable[..., Any]]) -> Iterator[None]:
        """Let other functions, of the model and the call's arguments, run in the place of the regions' code."""
        code, self.functions = self.functions, list(functions)
        try:
            yield
        finally:
            self.functions = code

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the model's own children: its forward may call all of them, but not what passes add to it."""
        return ((name, child) for name, child in super().named_children() if name in self._own_parts)

    def _added(self) -> Iterator[nn.Module]:
        return (part for name, part in self._modules.items() if part is not None and name not in self._own_parts)

    def train(self, mode: bool = True) -> Any:
        """Set the mode of the model as its own class does, and of what passes added to it."""
        super().train(mode)
        for part in self._added():
            part.train(mode)
        return self

    def apply(self, fn: Callable[[nn.Module], None]) -> Any:
        """Apply a function to what passes added to the model, to its own parts and to itself."""
        for part in self._added():
            part.apply(fn)
        return super().apply(fn)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        super()._apply(*args, **kwargs)
        for part in self._added():
            part._apply(*args, **kwargs)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Islands":
        new = object.__new__(type(self))
        memo[id(self)] = new
        for name, value in self.__dict__.items():
            if name not in ("_graph", "functions"):
                new.__dict__[name] = copy.deepcopy(value, memo)
        new.graph = _copied(self.graph)
        return new

    def __reduce__(self) -> Any:
        raise TypeError(f"{type(self).__name__} cannot be pickled; write it with fxcompress.save")

    def __str__(self) -> str:
        return repr(self)


class _OwnParts(nn.Module):
    """Mixed into the class of a Sequential: it runs its own parts, and not the modules that passes add to it."""

    _own_parts: list[str]

    def __iter__(self) -> Iterator[nn.Module]:
        return (self.get_submodule(name) for name in self._own_parts)

    def __len__(self) -> int:
        return len(self._own_parts)


class _InRegion:
    """Mixed into the class of a module whose forward is graph code."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        model, index = self.__dict__["_region"]
        return model.functions[index](model, *args, **kwargs)


def put_regions(model: nn.Module, graph: fx.Graph, paths: Sequence[str], own: Sequence[str]) -> Islands:
    """Put the regions of a graph, which are the modules `paths` in that order, into the model; returns it."""
    bases = (Islands, _OwnParts) if isinstance(model, nn.Sequential) else (Islands,)
    model.__class__ = type(type(model).__name__, (*bases, type(model)), {"__doc__": type(model).__doc__})
    assert isinstance(model, Islands)
    model._regions, model._own_parts = list(paths), list(own)
    for index, path in enumerate(paths):
        module = model.get_submodule(path)
        module.__class__ = type(type(module).__name__, (_InRegion, type(module)), {"__doc__": type(module).__doc__})
        module.__dict__["_region"] = (model, index)  # in the dict: as an attribute, the model would be its own part
    model.graph = graph
    _close_fast_paths(model)
    return model


def _close_fast_paths(model: nn.Module) -> None:
    """Let encoders of torch call their parts: where nobody needs gradients they would pass them by."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
        elif isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # what the fast path asks for; the activation is another attribute


def regions(gm: fx.GraphModule) -> list[Region]:
    """Return the regions of a graph; a model captured as a whole is one, of the path ""."""
    paths = gm._regions if isinstance(gm, Islands) else [""]
    found: list[list[fx.Node]] = [[]]
    for node in gm.graph.nodes:
        found[-1].append(node)
        if node.op == "output":
            found.append([])
    return [Region(path, nodes) for path, nodes in zip(paths, found, strict=False)]


def _function(region: Region) -> Callable[..., Any]:
    """Return the code of a region as a function of the model and the arguments of the region's module."""
    code = _graph_of(region.nodes).python_code("self")
    file = f"<graph of {region.path}>"
    linecache.cache[file] = (len(code.src), None, code.src.splitlines(keepends=True), file)
    made: dict[str, Any] = dict(code.globals)
    exec(compile(code.src, file, "exec"), made)
    return made["forward"]


def _graph_of(nodes: Sequence[fx.Node]) -> fx.Graph:
    graph = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        new[node] = graph.node_copy(node, new.__getitem__)
    return graph


def _copied(graph: fx.Graph) -> fx.Graph:
    return _graph_of(list(graph.nodes))  # fx's own copy ends at the first output


def bound(gm: fx.GraphModule, region: Region, args: Sequence[Any], kwargs: Any) -> dict[fx.Node, Any]:
    """Return the values of a region's inputs in a call. Raises CaptureError where the call does not fit."""
    inputs = [node for node in region.nodes if node.op == "placeholder"]
    parameters = _parameters(inputs)
    try:
        call = inspect.Signature(parameters).bind(*args, **kwargs)
    except TypeError as error:
        raise CaptureError(f"{region.path or type(gm).__name__}: {error}") from error
    call.apply_defaults()
    return {node: call.arguments[parameter.name] for node, parameter in zip(inputs, parameters, strict=True)}


def _parameters(inputs: Sequence[fx.Node]) -> list[inspect.Parameter]:
    """Return what the placeholders are in the signature of their graph's code."""
    kinds = {"*": inspect.Parameter.VAR_POSITIONAL, "**": inspect.Parameter.VAR_KEYWORD}
    plain: Any = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters: list[inspect.Parameter] = []
    for node in inputs:
        name = str(node.target).lstrip("*")
        kind = kinds.get(str(node.target).removesuffix(name), plain)
        default = node.args[0] if node.args else inspect.Parameter.empty
        parameters.append(inspect.Parameter(name, kind, default=default))
        if kind == inspect.Parameter.VAR_POSITIONAL:  # what follows takes no position
            plain = inspect.Parameter.KEYWORD_ONLY
    return parameters
