"""Hooks of the model: those that a graph would lose are refused, the others become part of it."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from fxcompress.errors import CaptureError


def refuse_lost_hooks(root: nn.Module, is_kept: Callable[[nn.Module, str], bool]) -> None:
    """Check the hooks of all modules, and watch while tracing those that can become part of the graph.

    Modules that `is_kept` stay modules, with their hooks. Others are followed into: what their forward hooks compute
    is traced, while backward hooks, hooks of the root and hooks that only look on would be lost.
    Raises CaptureError naming module and hook, here or while the hook is traced. `root` is changed.
    """
    for name, module in _followed(root, "", is_kept):
        for hook in (*module._backward_hooks.values(), *module._backward_pre_hooks.values()):
            raise _lost(name, hook, "a backward hook")
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in hooks.items():
                if not name:
                    raise _lost(name, hook, "a forward hook")
                hooks[key] = _watched(name, hook)


def _followed(
    module: nn.Module, name: str, is_kept: Callable[[nn.Module, str], bool]
) -> Iterator[tuple[str, nn.Module]]:
    yield name, module
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        if not is_kept(child, path):
            yield from _followed(child, path, is_kept)


def _watched(name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
    def watched(*args: Any, **kwargs: Any) -> Any:
        result = hook(*args, **kwargs)
        sets_a_weight = type(hook).__module__.startswith("torch.nn.utils")  # weight_norm, prune
        if result is None and not sets_a_weight:
            raise _lost(name, hook, "a forward hook that returns nothing")
        return result

    return watched


def _lost(name: str, hook: Any, kind: str) -> CaptureError:
    where = f"module {name!r}" if name else "the model itself"
    return CaptureError(
        f"{where} has {kind}, {getattr(hook, '__qualname__', type(hook).__qualname__)}, which its graph would lose; "
        "remove it before with the handle that registered it: handle.remove()"
    )
