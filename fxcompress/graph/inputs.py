"""Example inputs and batches: one tensor, a tuple of positional arguments or a dict of keyword arguments."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import Tensor, fx

from fxcompress.errors import NotReadyError


class Arguments(NamedTuple):
    """The arguments of one call of a model."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}  # noqa: RUF012  (a NamedTuple's default is never changed)


def as_arguments(inputs: Any) -> Arguments:
    """Return example inputs as the arguments of a call."""
    if isinstance(inputs, Arguments):
        return inputs
    if isinstance(inputs, dict):
        return Arguments((), dict(inputs))
    return Arguments(tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,), {})


class Batch(NamedTuple):
    """One batch: the model's arguments, and the labels or None."""

    inputs: Arguments
    target: Any = None


def batches(gm: fx.GraphModule, data: Iterable[Any], positional: int | None = None) -> Iterator[Batch]:
    """Yield each batch of `data`, split into the model's arguments and labels.

    A tensor is the input. In a dict, keys that the model takes are arguments and the rest labels. In a tuple, the first
    `positional` values are arguments (by default as many as the model requires) and the rest labels; a first value that
    is itself a tuple or a dict holds all arguments. One label is given as it is, several as a tuple or dict.
    """
    parameters = [node for node in gm.graph.nodes if node.op == "placeholder"]
    names = [str(node.target) for node in parameters]
    required = positional if positional is not None else sum(not node.args for node in parameters)
    for batch in data:
        yield _split(batch, names, required)


def _split(batch: Any, names: list[str], required: int) -> Batch:
    if isinstance(batch, dict):
        rest = {key: value for key, value in batch.items() if key not in names}
        target = next(iter(rest.values())) if len(rest) == 1 else rest or None
        return Batch(Arguments((), {key: value for key, value in batch.items() if key in names}), target)
    if isinstance(batch, tuple | list):
        if batch and isinstance(batch[0], tuple | list | dict):
            args, labels = as_arguments(batch[0]), tuple(batch[1:])
        else:
            args, labels = Arguments(tuple(batch[:required]), {}), tuple(batch[required:])
        return Batch(args, labels[0] if len(labels) == 1 else labels or None)
    if isinstance(batch, Tensor):
        return Batch(Arguments((batch,), {}))
    raise NotReadyError(f"a batch of data is a tensor, a tuple or a dict, not {type(batch).__name__}")


class Examples(NamedTuple):
    """Arguments to run the model with, None when nothing was given, and how many of a batch's values are positional."""

    inputs: Arguments | None
    positional: int | None


def examples(gm: fx.GraphModule, example_inputs: Any, data: Iterable[Any] | None) -> Examples:
    """Return the example inputs, or else the first sample of the first batch of `data`."""
    if example_inputs is not None:
        given = as_arguments(example_inputs)
        return Examples(given, len(given.args) or None)
    for batch in batches(gm, data) if data is not None else ():
        return Examples(one_sample(batch.inputs), None)
    return Examples(None, None)


def rereadable(data: Iterable[Any] | None) -> Iterable[Any] | None:
    """Return data that can be read more than once; a generator is read into a list, a DataLoader is returned as it is."""
    return list(data) if data is not None and iter(data) is data else data


def one_sample(arguments: Arguments) -> Arguments:
    """Return the arguments cut to the first sample along the first axis of each tensor."""

    def cut(value: Any) -> Any:
        return value[:1] if isinstance(value, Tensor) and value.dim() > 0 else value

    return Arguments(tuple(map(cut, arguments.args)), {key: cut(value) for key, value in arguments.kwargs.items()})
