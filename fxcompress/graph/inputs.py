"""Example inputs and batches: one tensor, a tuple of positional arguments or a dict of keyword arguments."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxcompress.errors import CaptureError, NotReadyError


class Arguments(NamedTuple):
    """The arguments of one call of a model."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}


def as_arguments(inputs: Any) -> Arguments:
    """Return example inputs as the arguments of a call."""
    if isinstance(inputs, Arguments):
        return inputs
    if isinstance(inputs, Mapping):
        return Arguments((), dict(inputs))
    return Arguments(tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,), {})


def replaced(arguments: Arguments, function: Callable[[Any], Any], kind: type = Tensor) -> Arguments:
    """Return arguments with the function's result for each tensor, or `kind`; one that is given twice stays one."""
    new: dict[int, Any] = {}

    def replace(one: Any) -> Any:
        if id(one) not in new:
            new[id(one)] = function(one)
        return new[id(one)]

    return Arguments(*pytree.tree_map_only(kind, replace, tuple(arguments)))


def apart(arguments: Arguments) -> Arguments:
    """Return arguments in which a tensor that is given twice, such as query and key, is two of the same memory."""
    seen: set[int] = set()

    def separate(tensor: Tensor) -> Tensor:
        again = id(tensor) in seen
        seen.add(id(tensor))
        return tensor.detach().requires_grad_(tensor.requires_grad) if again else tensor

    return Arguments(*pytree.tree_map_only(Tensor, separate, tuple(arguments)))


def repetitions(arguments: Arguments) -> list[int]:
    """Return for each tensor in a call the position of the first that is the same object."""
    tensors = [id(leaf) for leaf in pytree.tree_leaves(tuple(arguments)) if isinstance(leaf, Tensor)]
    return [tensors.index(one) for one in tensors]


@fx.has_side_effect
def expect(value: Any, captured: Any, name: str) -> None:
    """Refuse a call that asks for another path through the model than the captured one."""
    if not (value is captured or (type(value) is type(captured) and value == captured)):
        raise CaptureError(
            f"the model was captured with {name}={captured!r}; state the value that you need in example_inputs"
        )


def fixed_arguments(model: nn.Module, arguments: Arguments) -> Mapping[str, Any]:
    """Return the arguments that choose a path through the model, with their values in the call or by default."""
    signature = inspect.signature(type(model).forward)
    try:
        call = signature.bind_partial(model, *arguments.args, **arguments.kwargs)
    except TypeError:  # a decorator shows another signature than the one that is called
        call = signature.bind_partial(model)
    call.apply_defaults()
    return {name: value for name, value in call.arguments.items() if value is None or isinstance(value, bool | str)}


class Batch(NamedTuple):
    """One batch: the model's arguments, and the labels or None."""

    inputs: Arguments
    target: Any = None


def batches(model: nn.Module, data: Iterable[Any], positional: int | None = None) -> Iterator[Batch]:
    """Yield each batch of `data`, split into the model's arguments and labels.

    A tensor is the input. In a dict, keys that the model takes are arguments and the rest labels. In a tuple, the
    first `positional` values are arguments (by default as many as the model requires) and the rest labels; a first
    value that is itself a tuple or a dict holds all arguments. One label is given as it is, several as tuple or dict.
    Raises NotReadyError for a batch that does not hold what the model takes.
    """
    if isinstance(data, Tensor):
        raise NotReadyError("data is one tensor; give an iterable of batches, for one batch a list: data=[tensor]")
    try:
        iterator = iter(data)
    except TypeError as error:
        message = f"data is an iterable of batches, such as a list or a DataLoader, not {data!r}"
        raise NotReadyError(message) from error
    names, required = _parameters(model)
    for batch in iterator:
        split = _split(batch, names, max(len(required), 1) if positional is None else positional)
        given = {*names[: len(split.inputs.args)], *split.inputs.kwargs}
        if missing := [name for name in required if name not in given]:
            raise NotReadyError(
                f"a batch of data has no {', '.join(missing)}; the model takes {', '.join(names)}, "
                f"of which it requires {', '.join(required)}"
            )
        yield split


def _parameters(model: nn.Module) -> tuple[list[str], list[str]]:
    """Return the names of what a model or graph takes, and of what it requires."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    plain = [one for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    return [one.name for one in plain], [one.name for one in plain if one.default is one.empty]


def _split(batch: Any, names: Sequence[str], positional: int) -> Batch:
    if isinstance(batch, Mapping):
        named = {key: value for key, value in batch.items() if key in names}
        rest = {key: value for key, value in batch.items() if key not in names}
        if not named:
            raise NotReadyError(
                f"a batch of data has {', '.join(map(str, rest))}; the model takes {', '.join(names)}"
            )
        return Batch(Arguments((), named), next(iter(rest.values())) if len(rest) == 1 else rest or None)
    if not isinstance(batch, tuple | list | Tensor):
        raise NotReadyError(f"a batch of data is a tensor, a tuple or a dict, not {type(batch).__name__}")
    values = (batch,) if isinstance(batch, Tensor) else tuple(batch)
    if values and isinstance(values[0], tuple | list | Mapping):
        inputs, labels = as_arguments(values[0]), values[1:]
    elif len(values) < positional:
        raise NotReadyError(
            f"a batch of data has {len(values)} values; the model takes {positional}: {', '.join(names[:positional])}"
        )
    else:
        inputs, labels = Arguments(values[:positional]), values[positional:]
    return Batch(inputs, labels[0] if len(labels) == 1 else labels or None)


class Examples(NamedTuple):
    """Arguments to run the model with, None when none are known, and how many of a batch's values are positional."""

    inputs: Arguments | None
    positional: int | None


def examples(model: nn.Module, example_inputs: Any, data: Iterable[Any] | None) -> Examples:
    """Return the example inputs, or else the first sample of the first batch of `data`."""
    if example_inputs is not None:
        given = as_arguments(example_inputs)
        return Examples(given, len(given.args) or None)
    for batch in batches(model, data) if data is not None else ():
        return Examples(one_sample(batch.inputs), None)
    return Examples(None, None)


def rereadable(data: Iterable[Any] | None) -> Iterable[Any] | None:
    """Return data that can be read more than once; a generator is read into a list, a DataLoader stays as it is."""
    return list(data) if isinstance(data, Iterator) else data


def one_sample(arguments: Arguments) -> Arguments:
    """Return the arguments cut to the first sample: each tensor whose first axis is as long as the first tensor's."""
    tensors = [leaf for leaf in pytree.tree_leaves(tuple(arguments)) if isinstance(leaf, Tensor) and leaf.dim() > 0]

    def cut(tensor: Tensor) -> Tensor:
        return tensor[:1] if tensor.dim() > 0 and len(tensor) == len(tensors[0]) else tensor

    return Arguments(*pytree.tree_map_only(Tensor, cut, tuple(arguments)))
