"""The normal form: one spelling for each operator, each node a value of its own, nothing frozen in eval mode."""

from torch import fx, nn

from fxcompress.graph.mode import DROPOUT, FollowsMode, Mode
from fxcompress.graph.operators.calls import normalize_call
from fxcompress.graph.traced import Traced
from fxcompress.graph.tracing.inplace import remove_inplace


def normalize(traced: Traced, model: nn.Module) -> None:
    """Bring the graph of `model` into the normal form.

    Raises CaptureError for an in-place operation on memory that is read elsewhere.
    """
    graph = traced.graph
    state_changes = remove_inplace(traced, model)
    for node in list(graph.nodes):
        if any(isinstance(value, Mode) for value in (*node.args, *node.kwargs.values())):
            _call_as_module(traced, node, model)
            continue
        if node.kwargs.get("inplace") is False:
            node.kwargs = {name: value for name, value in node.kwargs.items() if name != "inplace"}
        if node not in traced.plain:
            normalize_call(node)
    # A module may change its state or draw random numbers even where nothing reads its result.
    graph.eliminate_dead_code(lambda node: node.op == "call_module" or node in state_changes or node.is_impure())


def _call_as_module(traced: Traced, node: fx.Node, model: nn.Module) -> None:
    """Turn a function with `training=self.training`, which tracing freezes in eval mode, into a module."""
    module: nn.Module
    if node.target in DROPOUT:
        given = dict(zip(("input", "p", "training", "inplace"), node.args, strict=False)) | node.kwargs
        module, node.args, node.kwargs = DROPOUT[node.target](given.get("p", 0.5)), (given["input"],), {}
    else:
        positions = [index for index, value in enumerate(node.args) if isinstance(value, Mode)]
        keywords = [keyword for keyword, value in node.kwargs.items() if isinstance(value, Mode)]
        module = FollowsMode(node.target, positions, keywords)
        node.args = tuple(False if isinstance(value, Mode) else value for value in node.args)
        node.kwargs = {key: False if isinstance(value, Mode) else value for key, value in node.kwargs.items()}
    traced.call_made(node, module.train(model.training))
