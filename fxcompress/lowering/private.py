"""What lowering works on: a private copy of the model, checked, and arguments on the CPU."""

import copy
import inspect
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxcompress.errors import LoweringError, NotReadyError
from fxcompress.graph.inputs import Arguments, as_arguments
from fxcompress.nn import Choice, Quantizer


def private_copy(model: nn.Module) -> nn.Module:
    """Return a copy of `model` on the CPU in eval mode.

    Raises LoweringError where a Choice is open, NotReadyError where a Quantizer has no range.
    """
    for name, module in model.named_modules():
        if isinstance(module, Choice):
            raise LoweringError(
                f"Choice {name!r} is open between {' | '.join(module.options)}: decide it before lowering, by "
                "`search:` in the policy or a `resolve` step"
            )
        if isinstance(module, Quantizer) and module.enabled and not module.ready:
            raise NotReadyError(
                f"Quantizer {name!r} ({module}) has no range: calibrate it, set_range it or load its state"
            )
    return copy.deepcopy(model).cpu().eval()


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
