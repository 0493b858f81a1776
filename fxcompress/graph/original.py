"""The original: what a model computes on the example inputs, which every graph of it has to compute."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from fxcompress.errors import CaptureError
from fxcompress.graph.compare import attributes, marks, refuse_difference, run
from fxcompress.graph.counting import counted
from fxcompress.graph.exporting.axes import lengths
from fxcompress.graph.exporting.nesting import filled
from fxcompress.graph.exporting.signature import open_inputs
from fxcompress.graph.exporting.sizes import expect_sizes
from fxcompress.graph.inputs import Arguments, refuse_nested
from fxcompress.graph.mode import eval_mode
from fxcompress.graph.regions import Islands


class Original:
    """What the model computes on the example inputs, and where it spends its multiply-accumulates."""

    def __init__(self, model: nn.Module, arguments: Arguments) -> None:
        refuse_nested(arguments)
        self.model, self.arguments, self.name = model, arguments, type(model).__name__
        self.with_gradients = False  # which take memory, and are needed where forward itself asks for some
        self.remembers = False  # whether forward sets attributes, which its next run may read
        self.others: dict[str, Arguments] = {}
        self.macs: Mapping[str, int]
        try:
            self.outputs, self.macs = self._counted()
        except CaptureError:
            self.with_gradients = True
            self.outputs, self.macs = self._counted()

    def check(self, gm: fx.GraphModule) -> None:
        """Raise CaptureError where the graph does not compute what the model does."""
        found = self._run(gm, f"the graph of {self.name}")
        try:
            refuse_difference(self.outputs, found, self.name)
        except CaptureError as error:
            self._refuse_memory(error)
            raise
        if self.remembers and not isinstance(gm, Islands):
            self._refuse_forgetting(gm)

    def held(self, gm: fx.GraphModule) -> str:
        """Return an axis of which a graph takes no other size than the example's and the model does, or ""."""
        checks = [] if isinstance(gm, Islands) else gm.graph.find_nodes(op="call_function", target=expect_sizes)
        for names, sizes in (check.args[1:3] for check in checks):
            self._find_others(names, sizes)
        return next((name for name, call in self.others.items() if not self._takes(gm, call)), "")

    def _find_others(self, names: Any, sizes: Any) -> None:
        """Note a call of another size for each axis that a graph holds and the model does not."""
        inputs = open_inputs(fx.Graph(), self.model, self.arguments)
        together: dict[tuple[int, int], list[int]] = {}
        for index, (axes, pattern) in enumerate(zip(lengths(inputs.tensors), sizes, strict=True)):
            for axis in axes:
                if isinstance(pattern[axis], int):
                    together.setdefault((axis, pattern[axis]), []).append(index)
        for (axis, _), indices in together.items():
            doubled = [
                torch.cat([tensor, tensor], axis) if index in indices else tensor
                for index, tensor in enumerate(inputs.tensors)
            ]
            call = Arguments(*filled(inputs.call, doubled))
            if self._takes(self.model, call):
                self.others[f"axis {axis} of {names[indices[0]]}"] = call

    def _takes(self, model: nn.Module, call: Arguments) -> bool:
        try:
            self._run(model, "", call)
        except CaptureError:
            return False
        return True

    def _counted(self) -> tuple[Any, Mapping[str, int]]:
        own = attributes(self.model)
        before = marks(own)

        def note(*_: Any) -> None:
            self.remembers = marks(attributes(self.model)) != before

        handle = self.model.register_forward_hook(note)
        try:
            with counted(self.model) as macs:
                return self._run(self.model, self.name), macs
        finally:
            handle.remove()

    def _run(self, model: nn.Module, name: str, call: Arguments | None = None, times: int = 1) -> Any:
        try:
            with eval_mode(model), torch.set_grad_enabled(self.with_gradients):
                return run(model, call or self.arguments, times)
        except CaptureError:
            raise
        except Exception as error:
            raise CaptureError(f"{name} does not run on the example inputs: {error}") from error

    def _refuse_forgetting(self, gm: fx.GraphModule) -> None:
        """Raise CaptureError where the model computes something else in its second run, and the graph does not."""
        try:
            refuse_difference(self._run(self.model, self.name, times=2), self._run(gm, self.name, times=2), self.name)
        except CaptureError as error:
            raise CaptureError(
                f"{self.name} keeps something in its attributes that its next run reads, which a graph does not; "
                f"keep it in buffers, or capture by islands: in a second run, {error}"
            ) from error

    def _refuse_memory(self, difference: CaptureError) -> None:
        """Raise CaptureError where the cause of a difference is that the model itself differs in its next run."""
        try:
            refuse_difference(self.outputs, self._run(self.model, self.name), self.name)
        except CaptureError as error:
            raise CaptureError(
                f"{self.name} does not compute the same when it is run again on the same inputs; let its forward "
                "keep what it changes in buffers or attributes of its own, not in an object that these hold, and "
                f"draw random numbers from torch; as it is, {difference}"
            ) from error
