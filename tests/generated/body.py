"""A generated model while it is being written: what its next line can read, and what it draws to decide."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import nn

from tests.generated.program import NAMESPACE, Input, Program

LARGEST = 600  # elements of a value in one sample: generated models are small
_KEEP_NO_RESULT = ("nn.Conv", "nn.Linear", "nn.BatchNorm")  # autograd does not need what they compute


class Value(NamedTuple):
    """A tensor in the model: its name and its shape without the batch axis."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The elements in one sample."""
        return torch.Size(self.shape).numel()


class Call(NamedTuple):
    """A module of the model that was called on a value of that shape, and can be called again."""

    module: str
    constructor: str
    shape: tuple[int, ...]


class Row(NamedTuple):
    """How an operator is written on a value, whether it can be, and how often it is, next to the others."""

    write: Callable[["Body", Value], Any]
    fits: Callable[["Body", Value], Any] = lambda body, x: True
    often: int = 1


class Body:
    """What has been written; each line is run as it is written, so that shapes are known and every line is valid."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any], inputs: tuple[Input, ...]) -> None:
        self.draw, self.inputs = draw, inputs
        self.init: list[str] = []
        self.forward: list[str] = []
        self.values: list[Value] = []
        self.calls: list[Call] = []
        self.owned: set[str] = set()  # values that may be changed in place: nothing has read them yet
        self._made = 0
        self._names = {**NAMESPACE, "self": nn.Module()}
        generator = torch.Generator().manual_seed(0)
        for one in inputs:
            self._names[one.name] = one.sample(2, generator)

    def choose(self, *options: Any) -> Any:
        """Draw one of some options, the first being the simplest."""
        return self.draw(st.sampled_from(options))

    def part(self, kind: str, constructor: str) -> str:
        """Add a module, parameter, buffer or plain tensor to the model, and return how forward speaks of it."""
        number = 1
        while hasattr(self._module, f"{kind}{number}"):
            number += 1
        self.write_init(f"self.{kind}{number} = {constructor}")
        return f"self.{kind}{number}"

    def parameter(self, kind: str, *shape: int) -> str:
        """Add a parameter of the model itself."""
        return self.part(kind, f"nn.Parameter(0.5 * torch.randn({', '.join(map(str, shape))}))")

    def write_init(self, line: str) -> None:
        """Write a line of `__init__`."""
        self._run(line)
        self.init.append(line)

    def call(self, kind: str, constructor: str, x: Value) -> Value:
        """Add a module and call it on a value."""
        module = self.part(kind, constructor)
        self.calls.append(Call(module, constructor, x.shape))
        return self.apply(module, constructor, x)

    def apply(self, module: str, constructor: str, x: Value) -> Value:
        """Call a module of the model on a value."""
        if not constructor.startswith(_KEEP_NO_RESULT):
            return self.line(f"{module}({x.name})")
        return self.own(f"{module}({self.choose('', '', '', 'input=')}{x.name})")

    def line(self, expression: str) -> Value:
        """Write a line that computes one value."""
        return self.lines(expression, 1)[0]

    def own(self, expression: str) -> Value:
        """Write a line that computes one value in memory of its own, which autograd does not read either."""
        value = self.line(expression)
        self.owned.add(value.name)
        return value

    def lines(self, expression: str, count: int, under: str = "") -> list[Value]:
        """Write a line that computes several values, perhaps under a `with` statement."""
        names = [f"v{self._made + index + 1}" for index in range(count)]
        self._made += count
        self.statement(f"{under}{', '.join(names)} = {expression}")
        found = [Value(name, tuple(self._names[name].shape[1:])) for name in names]
        self.values += found
        return found

    def statement(self, line: str) -> None:
        """Write a line as it is."""
        self._run(line)
        self.forward.append(line)
        self.owned -= set(re.findall(r"\bv\d+\b", line))

    def forget(self, value: Value) -> None:
        """Let no further line read a value."""
        self.values.remove(value)

    def fitting(self, fits: Callable[[Value], Any]) -> list[Value]:
        """Return the values that fit, the latest first."""
        return [value for value in reversed(self.values) if fits(value)]

    def unread(self) -> list[Value]:
        """Return the values that no line reads, the latest first."""
        read = {name for line in self.forward for name in re.findall(r"\b\w+\b", line.partition("=")[2])}
        return self.fitting(lambda value: value.name not in read)

    def called_on(self, x: Value) -> list[Call]:
        """Return what was called on a value of the same shape, the latest first."""
        return [call for call in reversed(self.calls) if call.shape == x.shape]

    def weights(self, fits: Callable[[torch.Size], Any]) -> list[str]:
        """Return the weights of the model's modules whose shapes fit."""
        names = [name for name, one in self._module.named_parameters() if name.endswith("weight") and fits(one.shape)]
        return ["self." + re.sub(r"\.(\d+)", r"[\1]", name) for name in names]

    def program(self, result: str, keywords: bool = False) -> Program:
        """Return what was written as a model that returns `result`."""
        return Program(self.inputs, tuple(self.init), (*self.forward, f"return {result}"), keywords)

    @property
    def _module(self) -> nn.Module:
        return self._names["self"]

    @torch.no_grad()
    def _run(self, line: str) -> None:
        try:
            exec(line, self._names)
        except Exception as error:
            error.add_note(f"in the line {line!r} after{self.program('')!r}")
            raise


def spellings(*expressions: str) -> Callable[[Body, Value], None]:
    """Return how to write one of some expressions of `x`; those that begin with `nn.` are modules to be called."""

    def write(body: Body, x: Value) -> None:
        expression = body.choose(*expressions)
        kind = re.match(r"nn\.([A-Za-z]+)", expression)
        if kind:
            body.call(kind[1].lower(), expression.format(c=x.shape[0]), x)
        else:
            body.line(expression.format(x=x.name, c=x.shape[0]))

    return write
