"""A generated model as a value: the lines of a class, which can be printed, run and pasted into a test."""

import inspect
import linecache
import re
from dataclasses import dataclass
from textwrap import indent
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from tests.generated.blocks import BLOCKS

NAMESPACE = {"__name__": "generated", "torch": torch, "F": F, "nn": nn, **BLOCKS}


@dataclass(frozen=True)
class Input:
    """What a model takes: shape without the batch axis; with `classes` it holds whole numbers below that."""

    name: str
    shape: tuple[int, ...]
    classes: int | None = None

    def sample(self, batch: int, generator: torch.Generator) -> Tensor:
        """Return random values for a batch of that size."""
        if self.classes is not None:
            return torch.randint(self.classes, (batch, *self.shape), generator=generator)
        return torch.randn(batch, *self.shape, generator=generator)


@dataclass(frozen=True, repr=False)
class Program:
    """The lines of `__init__` and `forward` of a model, what it takes, and whether it is called by keywords."""

    inputs: tuple[Input, ...]
    init: tuple[str, ...]
    forward: tuple[str, ...]
    keywords: bool = False

    def source(self) -> str:
        """Return the model's class, and before it the blocks that it is built from, as Python."""
        lines = "\n".join(self.init)
        used = [inspect.getsource(block) for name, block in BLOCKS.items() if re.search(rf"\b{name}\(", lines)]
        names = [one.name for one in self.inputs]
        parameters = ", ".join(["self", *(["*"] if self.keywords else []), *names])
        init = indent("\n".join(("super().__init__()", *self.init)), " " * 8)
        forward = indent("\n".join(self.forward), " " * 8)
        methods = f"    def __init__(self):\n{init}\n\n    def forward({parameters}):\n{forward}\n"
        return "\n\n".join((*used, f"class Generated(nn.Module):\n{methods}"))

    def model(self, seed: int = 0) -> nn.Module:
        """Return an instance with random parameters and statistics; each call gives a new class."""
        source = self.source()
        file = f"<generated model {hash(self):x}>"
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        namespace = dict(NAMESPACE)
        exec(compile(source, file, "exec"), namespace)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            model = namespace["Generated"]()
            for module in model.modules():
                _train_a_little(module)
        return model

    def batch(self, size: int, seed: int = 0) -> tuple[Tensor, ...] | dict[str, Tensor]:
        """Return random arguments for a batch of that size, as fxcompress takes them."""
        generator = torch.Generator().manual_seed(1000 * seed + size)
        values = {one.name: one.sample(size, generator) for one in self.inputs}
        return values if self.keywords else tuple(values.values())

    def __repr__(self) -> str:
        takes = ", ".join(f"{one.name}: {list(one.shape)}" for one in self.inputs)
        return f"\n# inputs without their batch axis: {takes}\n{self.source()}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Show hypothesis the source, not the fields."""
        printer.text(repr(self))


def _train_a_little(module: nn.Module) -> None:
    """Give a norm other parameters and statistics than the neutral ones that it starts with."""
    if isinstance(module, _NormBase | nn.LayerNorm | nn.GroupNorm) and module.weight is not None:
        module.weight.uniform_(0.5, 1.5)
        module.bias.normal_()
    if isinstance(module, _NormBase) and module.running_mean is not None:
        module.running_mean.normal_()
        module.running_var.uniform_(0.5, 2.0)
