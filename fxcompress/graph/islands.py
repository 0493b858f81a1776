"""Islands: the model's own Python stays, and the largest modules inside it that can be traced become graphs."""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from keyword import iskeyword
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from fxcompress.errors import CaptureError
from fxcompress.graph.beside import checked
from fxcompress.graph.compare import run
from fxcompress.graph.exporting.export import export
from fxcompress.graph.exporting.sizes import expect_sizes
from fxcompress.graph.inputs import Arguments, apart, fixed_arguments, repetitions, replaced
from fxcompress.graph.mode import eval_mode
from fxcompress.graph.module import refuse_keywords
from fxcompress.graph.module_kinds import is_kept, is_opaque
from fxcompress.graph.normalize import normalize
from fxcompress.graph.regions import Islands, put_regions
from fxcompress.graph.shell import shell
from fxcompress.graph.traced import Traced, join, place
from fxcompress.graph.tracing.symbolic import trace
from fxcompress.heap import trim


class Found(NamedTuple):
    """A model with regions, the lines that do something else in train mode, and why modules are no graphs."""

    gm: Islands
    asked: dict[str, str]
    reasons: dict[str, CaptureError]


@dataclass(frozen=True, slots=True)
class _Like:
    """Stands for a tensor in a recorded call, and takes no memory of torch.

    Small tensors that are made while a large model runs, and stay, lie between its activations: the memory of these
    then cannot be used again.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class _Call(NamedTuple):
    """The first call of a module, with what stands for its tensors.

    `repetitions` tells which of them are one; `apart`, that they are not so in all calls.
    """

    arguments: Arguments
    repetitions: list[int]
    apart: bool = False


def islands(model: nn.Module, arguments: Arguments) -> Found:
    """Turn the largest traceable modules of `model` into graphs, in place; its own Python calls them.

    Each region is run beside the forward that it replaces; one that differs is given up for smaller ones.
    Raises CaptureError where nothing in the model can be traced.
    """
    calls, outputs = _calls(model, arguments)
    given_up: dict[str, CaptureError] = {}
    also: set[str] = set()
    while True:
        attempt = _Attempt(shell(model), calls, given_up)
        gm = attempt.put(also)
        failed, outside = checked(gm, shell(model), arguments, outputs)
        trim()
        if not failed and outside <= also:
            return Found(gm, attempt.asked, attempt.reasons)
        given_up |= failed
        also |= outside


def _calls(model: nn.Module, arguments: Arguments) -> tuple[dict[str, _Call], Any]:
    """Run the model and return each module's first call, without values, and the outputs of the model.

    A module whose later calls take another path through its code has no entry.
    """
    calls: dict[str, _Call] = {}
    varying: set[str] = set()
    observed = shell(model)
    for path, module in observed.named_modules():
        module.register_forward_pre_hook(_recording(path, calls, varying), with_kwargs=True)
    with eval_mode(observed):
        outputs = run(observed, arguments)
    trim()
    return {path: call for path, call in calls.items() if path not in varying}, outputs


def _recording(path: str, calls: dict[str, _Call], varying: set[str]) -> Callable[..., None]:
    def record(module: nn.Module, args: Any, kwargs: Any) -> None:
        call = Arguments(args, kwargs)
        if path not in calls:
            try:
                calls[path] = _without_values(call)
            except Exception:  # such as a packed sequence: nothing stands for it
                calls[path] = _Call(Arguments(), [])
                varying.add(path)
        elif fixed_arguments(module, call) != fixed_arguments(module, calls[path].arguments):
            varying.add(path)
        elif repetitions(call) != calls[path].repetitions:  # attends to itself, then to something else
            calls[path] = calls[path]._replace(apart=True)

    return record


class _Attempt:
    """One choice of regions: the outermost modules that can be traced and were not given up."""

    def __init__(self, model: nn.Module, calls: dict[str, _Call], given_up: dict[str, CaptureError]) -> None:
        self.model, self.calls = model, calls
        self.reasons = {"": CaptureError("its own Python runs, between the graphs")} | given_up
        self.failed: dict[Hashable, CaptureError] = {}
        self.asked: dict[str, str] = {}
        self.traced: dict[str, Traced] = {}
        for path, child in model.named_children():
            self._visit(path, child)

    def put(self, also: set[str]) -> Islands:
        """Put the regions, and those of modules that the model also calls by themselves, into the model."""
        for path in sorted(also - self.traced.keys()):
            self._visit(path, self.model.get_submodule(path))
        if not self.traced and any(True for _ in self.model.parameters()):
            if not any(True for child in self.model.children() for _ in child.parameters()):
                raise CaptureError(
                    f"{type(self.model).__name__} has no modules inside it that could become graphs: its own forward "
                    "computes with its parameters; move that code into modules of their own, or capture by symbolic "
                    "or export"
                )
            why = "; ".join(f"{path or 'the model'}: {error}" for path, error in list(self.reasons.items())[:4])
            raise CaptureError(f"no module of {type(self.model).__name__} can be traced: {why}")
        order = [path for path in self.calls if path in self.traced]
        own = list(self.model._modules)
        graph, taken = fx.Graph(), dict[str, int]()
        for path in order:
            place(self.traced[path], path, graph, self.model, taken)
            self.asked |= self.traced[path].asked
        return put_regions(self.model, graph, order, own)

    def _visit(self, path: str, module: nn.Module) -> None:
        if is_kept(module):
            self.reasons[path] = CaptureError("the model's own Python calls it, between the graphs")
        if is_kept(module) or not any(True for _ in module.parameters()):
            return
        call, alike = self.calls.get(path), _likeness(module)
        if alike in self.failed:  # such as each layer of a transformer
            self.reasons.setdefault(path, self.failed[alike])
        if call is not None and path not in self.reasons:
            try:
                self.traced[path] = self._trace(path, module, call)
                for inner in self._opaque_in(path):
                    self._visit(join(path, inner), module.get_submodule(inner))
                return
            except CaptureError as error:
                self.reasons[path] = self.failed[alike] = error
        for name, child in module.named_children():
            self._visit(join(path, name), child)

    def _trace(self, path: str, module: nn.Module, call: _Call) -> Traced:
        if any(map(iskeyword, path.split("."))):
            raise CaptureError(
                f"{path!r} has a Python keyword in its name, which a graph cannot write; rename that part"
            )
        if is_opaque(module):
            traced = export(module, _with_values(call))
            _refuse_one_batch_size(traced, path)
        else:
            traced = trace(module, fixed_arguments(module, call.arguments), keeps_hooks=True)
        normalize(traced, module)
        refuse_keywords(traced, path)
        return traced

    def _opaque_in(self, path: str) -> Iterator[str]:
        traced = self.traced[path]
        for node in traced.graph.find_nodes(op="call_module"):
            module = traced.module_of(self.model.get_submodule(path), node)
            if module is not None and is_opaque(module):
                yield str(node.target)


def _likeness(module: nn.Module) -> Hashable:
    """Return what is equal for modules whose code takes the same path: classes, sizes and switches of all parts."""
    switches = [
        (path, name, value)
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        if name != "training" and isinstance(value, bool | str | None)
    ]
    return type(module), repr(module), tuple(switches)


def _refuse_one_batch_size(traced: Traced, path: str) -> None:
    """Raise CaptureError for a graph that takes no other batch than that of the example, as Python may give it."""
    for node in traced.graph.find_nodes(op="call_function", target=expect_sizes):
        for name, sizes in zip(*node.args[1:3], strict=True):
            if sizes and isinstance(sizes[0], int):
                raise CaptureError(f"the graph of {path} would take no other {name} than a batch of {sizes[0]}")


def _without_values(call: Arguments) -> _Call:
    """Return a call without its tensors. Raises TypeError for one that is not a plain tensor with strides."""

    def like(tensor: Tensor) -> _Like:
        if tensor.layout is not torch.strided or tensor.is_nested:
            raise TypeError(f"nothing stands for a tensor with the layout {tensor.layout}")
        return _Like(tuple(tensor.shape), tensor.stride(), tensor.dtype)

    return _Call(replaced(call, like), repetitions(call))


def _with_values(call: _Call) -> Arguments:
    """Return the arguments of a recorded call with zeros in the place of values, which are not read."""

    def zeros(like: _Like) -> Tensor:
        empty = torch.empty_strided(like.shape, like.stride, dtype=like.dtype, device="meta")
        return torch.zeros_like(empty, device="cpu")

    arguments = replaced(call.arguments, zeros, _Like)
    return apart(arguments) if call.apart else arguments
