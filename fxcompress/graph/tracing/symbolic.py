"""Symbolic tracing into the normal form: every weight an edge, mode-dependent modules kept as modules."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxcompress.errors import CaptureError
from fxcompress.graph.mode import Mode, eval_mode, observed_mode, takes_only_bool
from fxcompress.graph.module_kinds import TRANSPARENT
from fxcompress.graph.scalars import scalars
from fxcompress.graph.shell import shell
from fxcompress.graph.source import user_line
from fxcompress.graph.traced import Traced
from fxcompress.graph.tracing.gradients import own_gradients_refused
from fxcompress.graph.tracing.hooks import refuse_lost_hooks
from fxcompress.graph.tracing.inplace import INPLACE_OPERATORS
from fxcompress.graph.tracing.norms import is_plain, plain_norm
from fxcompress.graph.tracing.tracer import Tracer
from fxcompress.graph.tracing.train_mode import InMode, follow_train_mode, plain_state


def trace(model: nn.Module, fixed: Mapping[str, Any], *, keeps_hooks: bool = False) -> Traced:
    """Return the graph of `model`, for calls whose arguments `fixed` have the given values.

    With `keeps_hooks` the graph takes the place of the model's forward alone, so that its own hooks go on.
    A batch norm that computes more becomes a plain one in `model`, and the rest operators; tensors that the model's
    code makes become buffers of `model`, which are not part of its state.
    Raises CaptureError naming the module and the source line that cannot be followed.
    """
    norms = [path for path, part in model.named_modules() if isinstance(part, _BatchNorm) and not is_plain(part)]
    try:
        return _trace(model, fixed, norms, keeps_hooks)
    except CaptureError:
        if not norms:
            raise
        return _trace(
            model, fixed, [], keeps_hooks
        )  # such a norm may compute what cannot be followed: it stays a module


def _trace(model: nn.Module, fixed: Mapping[str, Any], norms: Sequence[str], keeps_hooks: bool) -> Traced:
    asked_in = {path: Mode({}) for path in norms}

    def traced_in(branch: bool) -> InMode:
        """Trace with branches on the mode taken as in eval or train mode, except those in norms."""
        observed = _without_hooks(model) if keeps_hooks else shell(model)
        with observed_mode(observed, branch) as asked:
            for path, mode in asked_in.items():
                observed.get_submodule(path).training = mode  # type: ignore[assignment]
            before = plain_state(observed)
            traced = _run(observed, fixed, asked, norms)
            if branch and plain_state(observed) != before:
                raise CaptureError("train mode changes what the next call computes")
        return InMode(observed, traced)

    try:
        in_eval = traced_in(False)
        follow_train_mode(in_eval, lambda: traced_in(True))
        observed, traced = in_eval
    except CaptureError as error:
        if not takes_only_bool(error.__cause__):
            raise
        observed = _without_hooks(model) if keeps_hooks else shell(model)
        asked_in = {}
        with eval_mode(observed):
            traced = _run(observed, fixed, dict([user_line(error.__cause__)]), [])
    for path, mode in asked_in.items():
        if mode.asked:
            _call_plain_norm(traced, model, path, mode)
    for node in traced.graph.find_nodes(op="get_attr"):
        name = str(node.target)
        if not hasattr(model, name.split(".")[0]):
            model.register_buffer(name, getattr(observed, name), persistent=False)
    return traced


def _without_hooks(model: nn.Module) -> nn.Module:
    bare = shell(model)
    for hooks in (bare._forward_hooks, bare._forward_pre_hooks, bare._backward_hooks, bare._backward_pre_hooks):
        hooks.clear()
    return bare


def _run(model: nn.Module, fixed: Mapping[str, Any], asked: dict[str, str], followed: Sequence[str]) -> Traced:
    """Run the model on proxies; modules that are `followed` into are not kept as they are."""
    tracer = Tracer(model, fixed, {model.get_submodule(path) for path in followed})
    refuse_lost_hooks(model, tracer.is_leaf_module)
    buffers = [(path, module, dict(module._buffers)) for path, module in model.named_modules()]
    try:
        with own_gradients_refused(), torch.enable_grad():
            alone = isinstance(model, TRANSPARENT) and (type(model).forward.__module__ or "").startswith("torch.nn")
            graph = tracer.trace_alone(model) if alone and not model._modules else tracer.trace(model)
    except CaptureError:
        raise
    except Exception as error:
        raise _untraceable(model, tracer.failed_in, error) from error
    _detach(graph, tracer)
    result = graph.output_node().args[0]
    if isinstance(model, TRANSPARENT) and isinstance(result, fx.Node):
        tracer.names[result] = ""
    for path, module, before in buffers:
        _refuse_new_buffers(path, module, before)
    return Traced(graph, tracer.scopes, tracer.names, scalars(graph), asked)


def _untraceable(model: nn.Module, failed_in: str, error: Exception) -> CaptureError:
    module = f" in module {failed_in!r}" if failed_in else ""
    place, line = user_line(error)
    where = f" at {place} ({line})" if place else ""
    said = " ".join(str(error).split()).split(". ")[0]  # torch.fx goes on with what tracing is
    message = f"{type(model).__name__} cannot be traced{module}{where}: {said}"
    return CaptureError(message, place=place, line=line)


def _call_plain_norm(traced: Traced, model: nn.Module, path: str, mode: Mode) -> None:
    """Let the graph call a plain batch norm where a module that follows the mode computes one, and more."""
    calls = [
        node
        for node in traced.graph.find_nodes(op="call_function", target=F.batch_norm)
        if traced.scopes[node] == path
    ]
    if not calls:  # the module has a batch norm of its own making, which is frozen now
        traced.asked.update(mode.asked)
        return
    norm = model.get_submodule(path)
    assert isinstance(norm, _BatchNorm)
    model.set_submodule(path, plain_norm(norm, 4))
    for node in calls:
        node.op, node.target, node.args, node.kwargs = "call_module", path, (node.args[0],), {}
    for check in traced.graph.find_nodes(op="call_function", target=torch._assert):
        if traced.scopes[check] == path:  # the plain norm has checks of its own
            traced.graph.erase_node(check)


def _detach(graph: fx.Graph, tracer: Tracer) -> None:
    """Detach the tensors that were computed without gradient where the rest of the model reads them."""
    without_gradient = tracer.without_gradient
    tensors = without_gradient - scalars(graph)
    for node in list(graph.nodes):
        readers = [user for user in node.users if user not in without_gradient]
        if node in tensors and readers:
            with graph.inserting_after(node):
                detached = graph.call_method("detach", (node,))
            tracer.scopes[detached] = tracer.scopes[node]
            for reader in readers:
                reader.replace_input_with(node, detached)


def _refuse_new_buffers(path: str, module: nn.Module, before: Mapping[str, Tensor | None]) -> None:
    """Refuse a buffer that forward assigned to, unless that was an in-place operation, which the graph holds."""
    for name, tensor in before.items():
        assigned: Any = module._buffers[name]
        if assigned is tensor:
            continue
        in_place = isinstance(assigned, fx.Proxy) and assigned.node.target in INPLACE_OPERATORS
        if not (in_place and assigned.node.args[0].op == "get_attr"):
            raise CaptureError(
                f"forward of {repr(path) if path else 'the model'} assigns a new value to its buffer {name!r}, which "
                f"a graph cannot; change it in place, for example with self.{name}.copy_(value)"
            )
