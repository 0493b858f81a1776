"""Coverage: what share of a model its graph holds, and for what it does not: where, why, and what to change."""

import inspect
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from fxcompress.errors import CaptureError
from fxcompress.graph.advice import advice
from fxcompress.graph.edit import INSERTED, module_of
from fxcompress.graph.mode import FollowsMode
from fxcompress.graph.regions import regions
from fxcompress.graph.ties import memory
from fxcompress.policies.policy import Way

Reasons = Mapping[str, CaptureError]  # why a module did not become a graph, by its path


class _OpaqueError(CaptureError):
    """A module of torch that a graph calls as it is."""


class _UnreadError(CaptureError):
    """A module that has no part in what the model computes."""


_UNREAD = "nothing that the model computes reads its parameters"
_OPAQUE = "symbolic tracing does not look into this module of torch"
_OPEN = (_NormBase, _DropoutNd, FollowsMode, *INSERTED)  # modules in a graph of which all is known


@dataclass(frozen=True)
class Unseen:
    """A module of which the graph knows nothing; `name` is "" for the model itself.

    `macs` and `parameters` are those that only this module computes and holds. `place` is the `file:line` of the code
    that cannot be followed, `line` its text.
    """

    name: str
    kind: str
    macs: int
    parameters: int
    place: str
    line: str
    reason: str
    advice: str


@dataclass(frozen=True)
class Tried:
    """A way of capture that was not taken, and why."""

    way: Way
    reason: str


@dataclass(frozen=True)
class Coverage:
    """What a capture sees of the model; multiply-accumulates are None where no example inputs were given."""

    way: Way
    macs: int | None
    seen_macs: int | None
    parameters: int
    seen_parameters: int
    unseen: tuple[Unseen, ...]
    tried: tuple[Tried, ...] = ()

    @property
    def share(self) -> float:
        """The share of the multiply-accumulates in the graph; of the parameters where the model was not run."""
        if self.macs is not None:
            return (self.seen_macs or 0) / self.macs if self.macs else 1.0
        return self.seen_parameters / self.parameters if self.parameters else 1.0


def coverage(gm: nn.Module) -> Coverage:
    """Return what the capture that made `gm` saw. Raises CaptureError for a module that `capture` did not make."""
    found = gm.__dict__.get(_ATTRIBUTE)
    if found is None:
        raise CaptureError(f"{type(gm).__name__} is not the result of fxcompress.capture")
    return found


_ATTRIBUTE = "_fxcompress_coverage"


def set_coverage(gm: nn.Module, found: Coverage) -> None:
    """Let a captured model tell what was seen of it."""
    gm.__dict__[_ATTRIBUTE] = found


def cover(
    gm: fx.GraphModule, way: Way, model: nn.Module, macs: Mapping[str, int] | None, reasons: Reasons
) -> Coverage:
    """Compare a graph with `model` and the multiply-accumulates of its own run, by module; None where it did not run.

    They have an entry, be it 0, for each module whose parameters were read.
    `reasons` tell why modules did not become graphs.
    """
    opaque = _opaque(gm)
    inside = {region.path: True for region in regions(gm)} | dict.fromkeys(opaque, False)
    names = {memory(tensor): name for name, tensor in reversed(list(gm.named_parameters(remove_duplicate=False)))}
    sizes = {names[memory(tensor)]: tensor.numel() for tensor in gm.parameters()}
    read = {names.get(memory(tensor)) for tensor in _read(gm)}
    unseen_macs = {path: count for path, count in (macs or {}).items() if count and not _is_in(path, inside)}
    unseen_sizes = {name: size for name, size in sizes.items() if name not in read}
    return Coverage(
        way,
        None if macs is None else sum(macs.values()),
        None if macs is None else sum(macs.values()) - sum(unseen_macs.values()),
        sum(sizes.values()),
        sum(sizes.values()) - sum(unseen_sizes.values()),
        _unseen(model, unseen_macs, unseen_sizes, dict(reasons) | dict.fromkeys(opaque, _OpaqueError(_OPAQUE)), macs),
    )


def _opaque(gm: fx.GraphModule) -> list[str]:
    modules = {str(node.target): module_of(gm, node) for node in gm.graph.nodes if node.op == "call_module"}
    graphs = {region.path for region in regions(gm)}
    return [path for path, module in modules.items() if not isinstance(module, _OPEN) and path not in graphs]


def _read(gm: fx.GraphModule) -> list[nn.Parameter]:
    """Return the parameters that the graph reads, itself or in a module of which all is known."""
    found: list[nn.Parameter] = []
    for node in gm.graph.nodes:
        module = module_of(gm, node)
        if isinstance(module, _OPEN):
            found.extend(module.parameters(recurse=False))
        elif node.op == "get_attr":
            path, _, leaf = str(node.target).rpartition(".")
            found.append(getattr(gm.get_submodule(path), leaf))
    return found


def _is_in(path: str, inside: Mapping[str, bool]) -> bool:
    """Return whether the innermost of the given modules around a path is a graph."""
    return inside.get(_around(path, inside), False)


def _around(path: str, among: Mapping[str, object] | list[str]) -> str:
    while path and path not in among:
        path = path.rpartition(".")[0]
    return path


def _unseen(
    model: nn.Module,
    macs: Mapping[str, int],
    sizes: Mapping[str, int],
    reasons: Reasons,
    used: Mapping[str, int] | None,
) -> tuple[Unseen, ...]:
    """Return the modules with unseen work or parameters; what is inside an opaque module counts as its own."""
    opaque = [path for path, error in reasons.items() if isinstance(error, _OpaqueError)]
    work, held = Counter[str](), Counter[str]()
    for path, count in macs.items():
        work[_around(path, opaque) or path] += count
    for name, size in sizes.items():
        path = name.rpartition(".")[0]
        held[_around(path, opaque) or path] += size
    idle = (
        set[str]() if used is None else held.keys() - work.keys() - {_around(path, opaque) or path for path in used}
    )

    def why(path: str) -> CaptureError:
        if (error := reasons.get(_around(path, reasons))) is None:
            return _UnreadError(_UNREAD)
        return _UnreadError(f"{_UNREAD} on the example inputs") if path in idle else error

    found = [_describe(model, path, work[path], held[path], why(path)) for path in work | held]
    return tuple(sorted(found, key=lambda one: (-one.macs, -one.parameters)))


def _describe(model: nn.Module, path: str, macs: int, parameters: int, error: CaptureError) -> Unseen:
    module = model.get_submodule(path)
    kind = type(module).__name__
    place = "" if isinstance(error, _UnreadError) else error.place or _source(module)
    return Unseen(path, kind, macs, parameters, place, error.line, str(error), advice(error))


def _source(module: nn.Module) -> str:
    """Return where the forward of a module is written, "" where that is not known."""
    try:
        return f"{inspect.getsourcefile(type(module).forward)}:{inspect.getsourcelines(type(module).forward)[1]}"
    except (OSError, TypeError):
        return ""
