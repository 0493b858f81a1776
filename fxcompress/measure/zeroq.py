"""ZeroQ: batches made from what a model's batch norms remember of the data, where there is no data."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from fxcompress.errors import NotReadyError
from fxcompress.graph.inputs import Arguments, as_arguments
from fxcompress.graph.mode import eval_mode

_EPS = 1e-6  # keeps the gradient of a deviation finite where all values are alike
_LEARNING_RATE, _PATIENCE = 0.5, 100


class _Statistics(NamedTuple):
    """Mean and deviation of each channel, of shape (channels,), or (samples, channels) where each has its own."""

    mean: Tensor
    deviation: Tensor


def synthesize(
    model: nn.Module, example_inputs: Any, batches: int, batch_size: int, *, iterations: int = 500, seed: int = 0
) -> list[Any]:
    """Return batches whose statistics before each batch norm are those it remembers (Cai et al. 2020, section 3).

    `model` is a captured graph before folding, or the model itself; it is not changed. Each floating-point input of
    shape (samples, channels, positions ...) is drawn from a normal distribution by `seed` and then optimized with
    Adam; all others are kept from `example_inputs`, repeated to `batch_size` samples. Mean and deviation are those of
    each sample, of the whole batch where a sample has one value in each channel; what is drawn is also held to mean 0
    and deviation 1. Each batch has a form that `data` takes: a dict of arguments, or a tuple of one tuple of them.
    Raises NotReadyError where no batch norm with statistics is called, or no input can be optimized.
    """
    norms = [module for module in model.modules() if _remembers(module)]
    if not norms:
        raise NotReadyError(
            f"{type(model).__name__} has no batch norm that remembers statistics, so no data can be made from them: "
            "pass data=loader"
        )
    examples = as_arguments(example_inputs)
    generator = torch.Generator().manual_seed(seed)
    with eval_mode(model), torch.enable_grad():
        return [_batch(model, norms, examples, batch_size, iterations, generator) for _ in range(batches)]


def _remembers(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def _batch(
    model: nn.Module,
    norms: Sequence[nn.Module],
    examples: Arguments,
    batch_size: int,
    iterations: int,
    generator: torch.Generator,
) -> Any:
    leaves, structure = pytree.tree_flatten(tuple(examples))
    samples = next((len(leaf) for leaf in leaves if _is_image(leaf)), 0)
    leaves = [_start(leaf, samples, batch_size, generator) for leaf in leaves]
    images = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not images:
        raise NotReadyError(
            "no example input is floating point with axes for samples, channels and positions, so no data can be "
            "made: pass data=loader"
        )
    optimizer = torch.optim.Adam(images, lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=_PATIENCE)
    dtypes = [leaf.dtype if _is_image(leaf) else None for leaf in pytree.tree_leaves(tuple(examples))]

    def call() -> Any:
        given = (leaf if dtype is None else leaf.to(dtype) for leaf, dtype in zip(leaves, dtypes, strict=True))
        return pytree.tree_unflatten(given, structure)

    for _ in range(iterations):
        distance = sum((_distance(image, None) for image in images), torch.zeros(()))
        args, kwargs = call()
        with _watching(norms) as distances:
            model(*args, **kwargs)
        if not distances:
            raise NotReadyError("the model calls none of its batch norms, so no data can be made: pass data=loader")
        distance = distance + torch.stack(distances).sum()
        for image, gradient in zip(images, torch.autograd.grad(distance, images), strict=True):
            image.grad = gradient
        optimizer.step()
        schedule.step(distance.item())
    for image in images:
        image.requires_grad_(False).grad = None
    args, kwargs = call()
    return kwargs or (args,)


def _is_image(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() > 2


def _start(leaf: Any, samples: int, batch_size: int, generator: torch.Generator) -> Any:
    """Return random values in the shape of an image, and of what else has as many samples some for each image."""
    if _is_image(leaf):
        drawn = torch.randn(batch_size, *leaf.shape[1:], generator=generator)
        wide = torch.promote_types(leaf.dtype, torch.float32)  # in half precision no small step is one
        return drawn.to(leaf.device, wide).requires_grad_()
    if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == samples:
        return leaf[torch.arange(batch_size, device=leaf.device) % samples]
    return leaf


@contextmanager
def _watching(norms: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Give a list to which each call of a batch norm adds how far its input is from what it remembers."""
    found: list[Tensor] = []

    def watch(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(_distance(inputs[0], norm))

    handles = [norm.register_forward_pre_hook(watch) for norm in norms]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _distance(x: Tensor, norm: Any) -> Tensor:
    """Return the squared distance of the statistics of `x` from a norm's, from 0 and 1 without one, for a sample."""
    own = _statistics(x)
    if norm is None:
        return (own.mean.square().sum() + (own.deviation - 1).square().sum()) / len(x)
    kept = _Statistics(norm.running_mean, (norm.running_var + _EPS).sqrt())
    each = len(x) if own.mean.dim() > 1 else 1
    return ((own.mean - kept.mean).square().sum() + (own.deviation - kept.deviation).square().sum()) / each


def _statistics(x: Tensor) -> _Statistics:
    """Return the statistics of each sample, of all together where a sample has one value in each channel."""
    values = x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
    if values.shape[2] == 1:
        values = values.transpose(0, 2)  # one sample of many positions
    variance, mean = torch.var_mean(values, dim=2, correction=0)
    squeezed = (mean.squeeze(0), variance.squeeze(0)) if values.shape[0] == 1 else (mean, variance)
    return _Statistics(squeezed[0], (squeezed[1] + _EPS).sqrt())
