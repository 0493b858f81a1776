"""A graph as text, one line for each operation: what a pass test compares and what a person reads."""

from typing import Any

from torch import fx

from fxcompress.graph.edit import module_of


def text(gm: fx.GraphModule) -> str:
    """Return the graph as lines `name = operator(arguments)`; parameters stand under their qualified names."""
    lines = []
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            default = f" = {node.args[0]!r}" if node.args else ""
            lines.append(f"{node.name}: input{default}")
        elif node.op == "output":
            lines.append(f"return {_show(node.args[0], gm)}")
        elif node.op == "get_attr":
            if _has_own_line(node):
                lines.append(f"{node.name} = {node.target}")
        else:
            shown = [_show(argument, gm) for argument in node.args]
            shown += [f"{name}={_show(argument, gm)}" for name, argument in node.kwargs.items()]
            lines.append(f"{node.name} = {_callee(node, gm)}({', '.join(shown)})")
    return "\n".join(lines)


def _has_own_line(node: fx.Node) -> bool:
    return any(user.op == "call_module" for user in node.users)


def _callee(node: fx.Node, gm: fx.GraphModule) -> str:
    if node.op == "call_module":
        shown = repr(module_of(gm, node))
        return f"{shown.split('(')[0]}(...)" if "\n" in shown else shown
    return f".{node.target}" if node.op == "call_method" else getattr(node.target, "__name__", str(node.target))


def _show(argument: Any, gm: fx.GraphModule) -> str:
    if isinstance(argument, fx.Node):
        return str(argument.target) if argument.op == "get_attr" and not _has_own_line(argument) else argument.name
    if isinstance(argument, tuple | list):
        inner = ", ".join(_show(item, gm) for item in argument)
        return f"[{inner}]" if isinstance(argument, list) else f"({inner}{',' if len(argument) == 1 else ''})"
    return repr(argument)
