"""resolve: replaces each Choice that is decided by the option taken."""

from torch import fx, nn

from fxcompress.errors import PolicyError
from fxcompress.graph.edit import has_module, insert, remove
from fxcompress.nn import Choice
from fxcompress.passes.apply import apply
from fxcompress.passes.inline import inline
from fxcompress.policies import Resolve
from fxcompress.policies.base import nearest


@apply.register
def resolve(spec: Resolve, gm: fx.GraphModule) -> None:
    """Replace Choices by the options that `choose` names, as if the policy had stated them.

    Raises PolicyError for a Choice or an option that does not exist, naming the nearest.
    """
    choices = {name: module for name, module in gm.named_modules() if isinstance(module, Choice)}
    for name, label in spec.choose.items():
        where = f"{spec.at}: " if spec.at else ""
        if name not in choices:
            there = f"the model has: {', '.join(choices)}" if choices else "the model has no open Choice"
            raise PolicyError(f"{where}no Choice is named {name!r}{nearest(name, choices)}; {there}")
        if label not in choices[name].labels:
            options = choices[name].labels
            raise PolicyError(
                f"{where}{name!r} has no option {label!r}{nearest(label, options)}; it has: {', '.join(options)}"
            )
        _take(gm, name, choices[name].options[label], label)
    gm.recompile()


def take_active(gm: fx.GraphModule) -> None:
    """Replace each Choice of whole operators by the option that runs while it is open, to see the graph as it is."""
    for name, module in list(gm.named_modules()):
        if isinstance(module, Choice) and module.active is not None:
            _take(gm, name, module.options[module.active], module.active)
    gm.recompile()


def _take(gm: fx.GraphModule, name: str, option: nn.Module, label: str) -> None:
    plain_name = name.removesuffix("_choice")
    for node in [node for node in gm.graph.nodes if node.op == "call_module" and node.target == name]:
        if isinstance(option, fx.GraphModule):
            inline(gm, node, option, node.args, f"{plain_name}.{label}")
            continue
        if not isinstance(option, nn.Identity):
            insert(gm, node.args[0], plain_name, option, [node])
        remove(gm, node)
    if has_module(gm, name):
        gm.delete_submodule(name)
