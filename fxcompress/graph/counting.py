"""Counting: the multiply-accumulates of a model's own run, by the module whose forward computes them."""

from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.nn.modules import module as hooks
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from fxcompress.graph.ties import memory


class _Counter(TorchDispatchMode):
    supports_higher_order_operators = True

    def __init__(self, paths: Mapping[nn.Module, str]) -> None:
        super().__init__()
        self.paths = paths
        self.stack = [""]
        self.macs: Counter[str] = Counter()
        self.read: set[int] = set()  # the tensors that operators read, by identity

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = getattr(func, "_overloadpacket", func)
        self.read.update(id(leaf) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        if isinstance(func, HigherOrderOperator) and packet not in flop_registry:
            args, kwargs = pytree.tree_map_only(callable, self.counting, (args, kwargs))
        elif packet not in flop_registry:
            with self:
                result = func.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        result = func(*args, **(kwargs or {}))
        if packet in flop_registry:
            self.macs[self.stack[-1]] += flop_registry[packet](*args, **(kwargs or {}), out_val=result) // 2
        elif packet in _ON_CPU:
            self.macs[self.stack[-1]] += _ON_CPU[packet](*args[:3])
        return result

    def counting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that a higher-order operator calls, such as a branch, as one whose work counts."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return call

    def enter(self, module: nn.Module, args: Any) -> None:
        self.stack.append(self.paths.get(module, self.stack[-1]))

    def leave(self, module: nn.Module, args: Any, result: Any) -> None:
        self.stack.pop()


def _of_recurrence(input: Tensor, weight_ih: Tensor, weight_hh: Tensor) -> int:
    return prod(input.shape[:2]) * (weight_ih.numel() + weight_hh.numel())


def _of_attention(query: Tensor, key: Tensor, value: Tensor) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape) // 2


# Operators that torch's own count does not know.
_ON_CPU: dict[Any, Callable[[Tensor, Tensor, Tensor], int]] = {
    torch.ops.aten.mkldnn_rnn_layer: _of_recurrence,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _of_attention,
}


@contextmanager
def counted(model: nn.Module) -> Iterator[Counter[str]]:
    """Count what runs inside: yields the multiply-accumulates by module path, each module without its children.

    In the end there is an entry for each module of which a parameter was read, 0 where that was no work.
    """
    counter = _Counter({module: path for path, module in model.named_modules()})
    handles = (
        hooks.register_module_forward_pre_hook(counter.enter),
        hooks.register_module_forward_hook(counter.leave, always_call=True),
    )
    try:
        with unfused(), counter:
            yield counter.macs
        counter.macs.update(dict.fromkeys(_owners(model, counter.read), 0))
    finally:
        for handle in handles:
            handle.remove()


def _owners(model: nn.Module, read: Container[int]) -> Iterator[str]:
    """Yield the paths of the modules of which a parameter was read, under each name that it has."""
    named = list(model.named_parameters(remove_duplicate=False))
    memories = {memory(parameter) for _, parameter in named if id(parameter) in read}
    return (name.rpartition(".")[0] for name, parameter in named if memory(parameter) in memories)


@contextmanager
def unfused() -> Iterator[None]:
    """Let torch run operator by operator: no fast path of attention, no compilation, as `torch.cond` would do."""
    fast = torch.backends.mha.get_fastpath_enabled()  # one operator for a whole layer, which calls none of its parts
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
