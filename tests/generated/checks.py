"""What every test of generated models needs: how many examples, and what a model does as numbers."""

import os
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, settings
from torch import Tensor, nn
from torch.utils import _pytree as pytree

FUZZ = int(os.environ.get("FUZZ", "0"))  # so many random examples; without it the same 100 each time
examples = settings(
    max_examples=FUZZ or 100,
    derandomize=not FUZZ,
    database=None,
    deadline=None,
    print_blob=True,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


def behaviour(model: nn.Module, inputs: Any, training: bool) -> dict[str, Any]:
    """Run a model forward and backward from one seed; return its outputs, gradients and state afterwards."""
    model.train(training)
    model.zero_grad()
    torch.manual_seed(0)
    given = pytree.tree_map(lambda x: x.clone().requires_grad_(x.is_floating_point()), inputs)
    outputs = model(**given) if isinstance(given, dict) else model(*given)
    tensors = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if tensors:
        torch.stack([(leaf * leaf).sum() for leaf in tensors]).sum().backward()
    named = [*model.named_parameters(), *enumerate(pytree.tree_leaves(given))]
    return {
        "outputs": pytree.tree_map_only(Tensor, Tensor.detach, outputs),
        "gradients": {name: tensor.grad for name, tensor in named if tensor.grad is not None},
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
    }


def assert_same(found: Any, expected: Any) -> None:
    """Check that two structures hold the same tensors bit for bit, NaN being equal to NaN."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def double(x: Tensor) -> Tensor:
    """Return floating-point values in double precision, in which rounding is no excuse."""
    return x.double() if x.is_floating_point() else x
