"""State: under which names the parameters, buffers and constants of an exported program are in the graph."""

from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from fxcompress.graph.exporting.calls import under_root


class State:
    """The tensors of `model` that a program reads, by the placeholders that it has for them.

    Constants that `model` does not have become buffers of it, which are not part of its state.
    """

    def __init__(self, model: nn.Module, program: ExportedProgram) -> None:
        named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        self._model = model
        self._by_name = dict(named)
        self._first_name = {id(tensor): name for name, tensor in reversed(named)}
        self._names: dict[fx.Node, str] = {}
        specs = program.graph_signature.input_specs
        for node, spec in zip(program.graph.find_nodes(op="placeholder"), specs, strict=True):
            if spec.target is not None:
                name = under_root(spec.target)
                constant = program.constants.get(spec.target)
                is_new = name not in self._by_name and constant is not None and not _has_tensor(model, name)
                self._names[node] = _register(model, constant) if is_new and constant is not None else name

    def __contains__(self, node: object) -> bool:
        return node in self._names

    def name_in(self, scope: str, node: fx.Node) -> str:
        """Return the name by which the module `scope` knows the tensor of a placeholder, or else its first name."""
        name = self._names[node]
        tensor = self._by_name.get(name)
        if tensor is None:
            return name
        module = self._model.get_submodule(scope)
        for leaf, own in (*module._parameters.items(), *module._buffers.items()):
            if own is tensor:
                return f"{scope}.{leaf}" if scope else leaf
        return self._first_name[id(tensor)]

    def is_of(self, module: nn.Module, node: fx.Node) -> bool:
        """Return whether a node is the placeholder of a parameter or buffer of the module itself."""
        tensor = self._by_name.get(self._names.get(node, ""))
        return any(
            own is tensor for own in (*module._parameters.values(), *module._buffers.values()) if own is not None
        )


def _has_tensor(model: nn.Module, name: str) -> bool:
    path, _, leaf = name.rpartition(".")
    modules = dict(model.named_modules())
    return path in modules and isinstance(getattr(modules[path], leaf, None), Tensor)


def _register(model: nn.Module, constant: Tensor) -> str:
    """Make a constant a buffer of the model, under the name that torch.fx gives such a tensor."""
    number = 0
    while hasattr(model, name := f"_tensor_constant{number}"):
        number += 1
    model.register_buffer(name, constant, persistent=False)
    return name
