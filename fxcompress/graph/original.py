"""The original: what a model computes on the example inputs, which every graph of it has to compute."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils import _pytree as pytree

from fxcompress.errors import CaptureError
from fxcompress.graph.compare import attributes, devices, marks, refuse_difference, run
from fxcompress.graph.counting import counted, unfused
from fxcompress.graph.exporting.axes import lengths
from fxcompress.graph.exporting.nesting import filled
from fxcompress.graph.exporting.signature import open_inputs
from fxcompress.graph.exporting.sizes import expect_sizes
from fxcompress.graph.inputs import Arguments, replaced
from fxcompress.graph.mode import eval_mode
from fxcompress.graph.nested import WatchNesting, is_nested, nesting, refuse_nested
from fxcompress.graph.regions import Islands, regions
from fxcompress.graph.shell import shell_around
from fxcompress.graph.source import failing_module, user_line


class Original:
    """What the model computes on the example inputs, and where it spends its multiply-accumulates.

    `macs` are by module, 0 for those of which nothing but parameters is read.
    """

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
            try:
                self.outputs, self.macs = self._counted()
            except CaptureError:
                self._refuse_nesting()
                raise
        if any(map(is_nested, pytree.tree_leaves(self.outputs))):
            raise nesting(f"{self.name} returns a nested tensor")

    def check(self, gm: fx.GraphModule) -> None:
        """Raise CaptureError where the graph does not compute what the model does."""
        if isinstance(gm, Islands):
            _refuse_norm_hooks(gm)
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

    def _shape_lazy(self) -> None:
        """Run the lazy modules for the first time, and leave the rest of the model as it is."""
        lazy = [part for part in self.model.modules() if _is_without_shape(part)]
        if not lazy:
            return
        model = shell_around(self.model, lazy)
        args, kwargs = replaced(self.arguments, torch.clone)
        with self._running(model, self.name), unfused(), torch.random.fork_rng(devices=devices(model)):
            torch.manual_seed(0)
            model(*args, **kwargs)

    def _counted(self) -> tuple[Any, Mapping[str, int]]:
        self._shape_lazy()
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
        with self._running(model, name):
            return run(model, call or self.arguments, times)

    @contextmanager
    def _running(self, model: nn.Module, name: str) -> Iterator[None]:
        """Let a model run in eval mode; an error of its code becomes a CaptureError that tells where it came up."""
        try:
            with eval_mode(model), torch.set_grad_enabled(self.with_gradients):
                yield
        except CaptureError:
            raise
        except Exception as error:
            message = f"{name} does not run on the example inputs: {error}"
            if isinstance(model, fx.GraphModule):  # whose lines are not the user's
                raise CaptureError(message) from error
            place, line = user_line(error)
            module = failing_module(error, model)
            where = [f"in module {module!r}" if module else "", f"at {place} ({line})" if place else ""]
            raise CaptureError(", ".join(filter(None, [message, *where])), place=place, line=line) from error

    def _refuse_nesting(self) -> None:
        """Raise CaptureError where the model runs, but makes nested tensors, which cannot be observed as it does."""
        watch = WatchNesting()
        try:
            with watch:
                self._run(self.model, self.name)
        except CaptureError:
            return
        if watch.place:
            said = f"{self.name} makes a nested tensor and uses it at {watch.place} ({watch.line})"
            raise nesting(said, place=watch.place, line=watch.line)

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


def _is_without_shape(part: nn.Module) -> bool:
    tensors = (*part._parameters.values(), *part._buffers.values())
    return any(tensor is not None and is_lazy(tensor) for tensor in tensors)


def _refuse_norm_hooks(gm: Islands) -> None:
    """Raise CaptureError for a region whose weight is set by a hook around it: its graph keeps the first one."""
    for region in regions(gm):
        module = gm.get_submodule(region.path)
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm | SpectralNorm):
                norm = "weight_norm" if isinstance(hook, WeightNorm) else "spectral_norm"
                raise CaptureError(
                    f"a hook of torch.nn.utils.{norm} sets {hook.name!r} of {region.path!r}, which no region sees; "
                    f"use torch.nn.utils.parametrizations.{norm}, or torch.nn.utils.remove_{norm} before capturing"
                )
