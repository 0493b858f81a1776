"""Verification: what must hold of every graph after every pass."""

from torch import fx

from fxcompress.errors import PassError
from fxcompress.graph.edit import INSERTED, module_of, tensor_under
from fxcompress.nn import Choice, Quantizer


def verify(gm: fx.GraphModule) -> None:
    """Check a graph after a pass: well-formed, targets exist, no inserted module dangles, one quantizer for a tensor.

    Raises PassError naming the node or module.
    """
    try:
        gm.graph.lint()
    except Exception as error:
        raise PassError(f"the graph is not well-formed: {error}") from error
    called = {str(node.target) for node in gm.graph.nodes if node.op == "call_module"}
    inside_choices = tuple(f"{name}." for name, module in gm.named_modules() if isinstance(module, Choice))
    for name, module in gm.named_modules():
        if isinstance(module, INSERTED) and name not in called and not name.startswith(inside_choices):
            raise PassError(f"module {name!r} ({module}) is in the model, but no node calls it")
    quantizer_of: dict[fx.Node, str] = {}
    for node in gm.graph.nodes:
        if isinstance(module_of(gm, node), Quantizer):
            tensor = tensor_under(gm, node)
            earlier = quantizer_of.setdefault(tensor, str(node.target))
            if earlier != node.target:
                raise PassError(f"tensor {tensor.name!r} has two quantizers, {earlier!r} and {node.target!r}")
