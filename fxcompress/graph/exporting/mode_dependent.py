"""Operators of an exported program that depend on the mode: batch norm, dropout and recurrent layers."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxcompress.graph.exporting.calls import enclosing, operator_name
from fxcompress.graph.mode import Mode
from fxcompress.graph.operators.calls import normalize_aten_call
from fxcompress.graph.tracing.norms import is_plain, plain_norm

if TYPE_CHECKING:
    from fxcompress.graph.exporting.lift import Lifter

_FEATURES = {2: nn.Dropout1d, 3: nn.Dropout1d, 4: nn.Dropout2d, 5: nn.Dropout3d}  # by the axes of the input


class DropoutRate(nn.Module):
    """The share of entries that an operator drops: `p` in train mode, none in eval mode."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self) -> float:
        """Return the share in the module's mode."""
        return self.p if self.training else 0.0

    def extra_repr(self) -> str:
        """Return the share in train mode."""
        return f"p={self.p}"


def _dropout(lifter: "Lifter", node: fx.Node, args: Sequence[Any], kwargs: Any) -> Any:
    x, p, training = args
    name = operator_name(node).removesuffix("_")
    if _drops_in_train_mode(lifter, node):
        return lifter.create_made(node, _dropout_module(name, node)(p), x)
    if not training:
        return x
    function = F.dropout if name == "dropout" else getattr(torch, name)
    return lifter.create(node, "call_function", function, (x,), {"p": p, "training": True})


def _drops_in_train_mode(lifter: "Lifter", node: fx.Node) -> bool:
    """Return whether an operator that drops out does so in train mode alone."""
    return node in lifter.followed or not lifter.following.with_rate.isdisjoint(enclosing(node))


def _dropout_module(name: str, node: fx.Node) -> type[nn.Module]:
    if name == "feature_dropout":
        return _FEATURES[_axes(node)]
    return {"dropout": nn.Dropout, "alpha_dropout": nn.AlphaDropout}.get(name, nn.FeatureAlphaDropout)


def _axes(node: fx.Node) -> int:
    """Return the number of axes of what an operator reads."""
    return node.all_input_nodes[0].meta["val"].dim()


def _batch_norm(lifter: "Lifter", node: fx.Node, args: Sequence[Any], kwargs: Any) -> fx.Node:
    """Call the module whose parameters and statistics these are; it has no more to compute than a batch norm."""
    x, weight, bias, mean, var, training, momentum, eps, _ = args
    path = lifter.calls.scope(node)
    module = lifter.model.get_submodule(path)
    names = (f"{path}.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var"))
    own = all(one is None or one.target == name for one, name in zip(args[1:5], names, strict=True))
    if path and isinstance(module, _BatchNorm) and own:
        if not is_plain(module):
            lifter.model.set_submodule(path, plain_norm(module, _axes(node)))
        return lifter.create(node, "call_module", path, (x,))
    mode = Mode({}) if node in lifter.followed else training
    return lifter.create(node, "call_function", F.batch_norm, (x, mean, var, weight, bias, mode, momentum, eps))


def _attention(lifter: "Lifter", node: fx.Node, args: Sequence[Any], kwargs: Any) -> fx.Node:
    args = list(args)
    if len(args) > 4 and args[4] and _drops_in_train_mode(lifter, node):
        args[4] = lifter.create_made(node, DropoutRate(args[4]))
        lifter.traced.plain.add(args[4])
    new = lifter.create(node, "call_function", node.target, tuple(args), kwargs)
    normalize_aten_call(new, "scaled_dot_product_attention")
    return new


def _recurrent(lifter: "Lifter", node: fx.Node, args: Sequence[Any], kwargs: Any) -> fx.Node:
    """Call torch's function, which drops out between its layers in train mode."""
    args = list(args)
    rate = next(position for position, value in enumerate(args) if isinstance(value, float))
    if args[rate] and args[rate - 1] > 1:
        args[rate + 1] = Mode({})
    return lifter.create(node, "call_function", getattr(torch, operator_name(node)), tuple(args))


MODE_DEPENDENT: Mapping[str, Callable[["Lifter", fx.Node, Any, Any], Any]] = {
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"), _dropout),
    **dict.fromkeys(("dropout_", "feature_dropout_", "alpha_dropout_", "feature_alpha_dropout_"), _dropout),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    "batch_norm": _batch_norm,
    "scaled_dot_product_attention": _attention,
}
