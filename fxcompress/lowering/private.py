"""What lowering works on: a private copy of the model, checked, and arguments on the CPU."""

import copy
import inspect
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxcompress.errors import LoweringError, NotReadyError
from fxcompress.graph import layers
from fxcompress.graph.edit import chain_under, module_of
from fxcompress.graph.inputs import Arguments, as_arguments
from fxcompress.nn import Choice, Quantizer


def private_copy(model: nn.Module) -> nn.Module:
    """Return a copy of `model` on the CPU in eval mode.

    Raises LoweringError where a Choice is open or a Quantizer is of a form that is not lowered, NotReadyError where
    one has no range.
    """
    places = _places(model)
    for name, module in model.named_modules():
        if isinstance(module, Choice):
            raise LoweringError(
                f"Choice {name!r} is open between {' | '.join(module.options)}: decide it before lowering, by "
                "`search:` in the policy or a `resolve` step"
            )
        if not isinstance(module, Quantizer) or not module.enabled:
            continue
        if not module.integer:
            raise LoweringError(
                f"{places.get(module, f'module {name!r}')} is {module}, which cannot be lowered; what can are "
                "uniform quantizers of 2 to 8 bits with fixed ranges, per tensor or per channel"
            )
        if not module.ready:
            raise NotReadyError(
                f"Quantizer {name!r} ({module}) has no range: calibrate it, set_range it or load its state"
            )
    return copy.deepcopy(model).cpu().eval()


def _places(model: nn.Module) -> dict[nn.Module, str]:
    """Return for each module on the weight or the inputs of a layer where it is, in words."""
    found: dict[nn.Module, str] = {}
    for gm in (part for part in model.modules() if isinstance(part, fx.GraphModule)):
        for layer in layers(gm):
            for part, edges in (("weight", layer.weight_edges()), ("input", layer.input_edges())):
                for module in (module_of(gm, node) for edge in edges for node in chain_under(gm, edge)):
                    if module is not None:
                        found.setdefault(module, f"the {part} of {layer.name!r}")
    return found


def arguments_for(model: nn.Module, example_inputs: Any) -> Arguments:
    """Return the arguments of a call with all tensors on the CPU, keyword arguments in the order of the signature."""
    given = as_arguments(example_inputs)
    order = {name: given.kwargs[name] for name in inspect.signature(model.forward).parameters if name in given.kwargs}
    kwargs = order | given.kwargs
    return Arguments(*pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().cpu(), (given.args, kwargs)))


def require(*packages: str) -> None:
    """Import packages, or raise a LoweringError that tells what to install."""
    for package in packages:
        try:
            __import__(package)
        except ImportError as error:
            raise LoweringError(f"lowering needs {package!r} ({error}): pip install fxcompress[onnx]") from error
