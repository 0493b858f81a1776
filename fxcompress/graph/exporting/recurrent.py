"""Recurrent layers during export: one operator each, which torch.export would unroll for one batch and length."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("fxcompress", "FRAGMENT")
_OPTIONS = "bool has_biases, int layers, float dropout, bool train, bool bidirectional, bool batch_first"
_KINDS = {
    "lstm": ("Tensor[]", "(Tensor, Tensor, Tensor)"),
    **dict.fromkeys(("gru", "rnn_tanh", "rnn_relu"), ("Tensor", "(Tensor, Tensor)")),
}


def _shapes(
    x: Tensor, state: Tensor | Sequence[Tensor], weights: Sequence[Tensor], biases: bool, layers: int, rate: float,
    train: bool, bidirectional: bool, batch_first: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return tensors of the shapes that a recurrent layer computes: its outputs, and its state after the last."""
    states = [state] if isinstance(state, Tensor) else state
    features = states[0].shape[-1] * (2 if bidirectional else 1)
    first, second = x.shape[:2]
    if batch_first:  # torch computes it the other way round, and the model's code may ask for contiguous memory
        outputs = x.new_empty((second, first, features)).transpose(0, 1)
    else:
        outputs = x.new_empty((first, second, features))
    return outputs, *(torch.empty_like(one) for one in states)


def _defined(kind: str, state: str, results: str) -> Any:
    _LIBRARY.define(f"{kind}(Tensor x, {state} state, Tensor[] weights, {_OPTIONS}) -> {results}")
    _LIBRARY.impl(kind, _shapes, "CompositeExplicitAutograd")
    return getattr(torch.ops.fxcompress, kind)


_OPERATORS: Mapping[Callable[..., Any], Any] = {
    getattr(torch, kind): _defined(kind, state, results) for kind, (state, results) in _KINDS.items()
}


def operator_for(function: Any, args: Sequence[Any]) -> Any:
    """Return the operator that stands for a call of a recurrent function of torch, None for any other call."""
    is_packed = len(args) > 2 and isinstance(args[2], Tensor)  # sequences of different lengths
    return None if is_packed else _OPERATORS.get(function)
