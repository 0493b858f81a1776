"""Beside: each region of a model runs beside the module that it replaces, in a run of the whole model."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from fxcompress.errors import CaptureError
from fxcompress.graph.compare import attributes, devices, refuse_difference, run, unchanged
from fxcompress.graph.inputs import Arguments, replaced
from fxcompress.graph.mode import eval_mode
from fxcompress.graph.regions import Islands, Region, regions
from fxcompress.graph.traced import join

_ADDED = "_fxcompress_added"

_Attributes = dict[nn.Module, dict[str, Any]]


def checked(
    gm: Islands, original: nn.Module, arguments: Arguments, outputs: Any
) -> tuple[dict[str, CaptureError], set[str]]:
    """Run each region beside the module of the original that it replaces.

    Returns why regions failed, and the modules inside regions that the model's own Python calls as well.
    """
    check = _Check(gm, original)
    gm.add_module(_ADDED, _Added())
    handles = [module.register_forward_pre_hook(check.noted(path)) for path, module in check.inside()]
    try:
        beside = [check.beside(region, code) for region, code in zip(regions(gm), gm.functions, strict=True)]
        with eval_mode(gm), eval_mode(original), gm.calling(beside):
            check.finish(outputs, run(gm, arguments))
    except CaptureError:
        raise
    except Exception as error:
        check.stop(error)
    finally:
        del gm._modules[_ADDED]
        for handle in handles:
            handle.remove()
    return check.failed, check.outside


class _Added(nn.Module):
    """Stands for the modules that passes add to a model."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise CaptureError(
            "the model's forward calls all of its parts, and so would call what is put into it; let it call those "
            "that it means by name, from self.children() or from an nn.ModuleList"
        )


class _Check:
    """Runs the original in the place of the regions, and notes which of them do not do the same."""

    def __init__(self, gm: Islands, original: nn.Module) -> None:
        self.gm, self.original = gm, original
        self.in_region, self.last = False, ""
        self.failed: dict[str, CaptureError] = {}
        self.setting: dict[str, CaptureError] = {}  # regions that may fail: the original sets attributes in them
        self.outside: set[str] = set()

    def inside(self) -> list[tuple[str, nn.Module]]:
        """Return the modules inside regions that are not regions themselves."""
        graphs = {region.path for region in regions(self.gm)}
        return [
            (join(path, name), module)
            for path in graphs
            for name, module in self.gm.get_submodule(path).named_modules()
            if join(path, name) not in graphs
        ]

    def noted(self, path: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any) -> None:
            if not self.in_region:
                self.outside.add(path)

        return note

    def beside(self, region: Region, code: Callable[..., Any]) -> Callable[..., Any]:
        module = self.gm.get_submodule(region.path)
        original = self.original.get_submodule(region.path)

        def call(gm: Islands, *args: Any, **kwargs: Any) -> Any:
            self.last = region.path
            copies = replaced(Arguments(args, kwargs), torch.clone)
            found = self._found(module, partial(code, gm), *copies)
            before = attributes(original)
            expected = original.forward(*args, **kwargs)  # hooks run around the graph
            self._note_attributes(region.path, before, attributes(original))
            try:
                if isinstance(found, Exception):
                    raise found
                refuse_difference(expected, found, region.path)
            except CaptureError as error:
                self.failed[region.path] = error
            except Exception as error:
                message = f"the graph of {region.path} does not run: {error}"
                self.failed[region.path] = CaptureError(message)
            return expected

        return call

    def _found(self, module: nn.Module, code: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Return what a region computes, or the error that it raises, before the original goes on."""
        self.in_region = True
        try:
            with torch.random.fork_rng(devices=devices(module)), unchanged(module):
                return code(*args, **kwargs)
        except Exception as error:
            return error
        finally:
            self.in_region = False

    def _note_attributes(self, path: str, before: _Attributes, after: _Attributes) -> None:
        new = ((name, value, before.get(part, {})) for part, own in after.items() for name, value in own.items())
        names = [name for name, value, old in new if value is not old.get(name, self)]
        if names:
            what = ", ".join(map(repr, names[:3]))
            self.setting[path] = CaptureError(f"its forward sets {what}, which other code reads; a graph does not")

    def finish(self, expected: Any, found: Any) -> None:
        """Give up regions that set attributes, where the model does not compute the same in the end."""
        try:
            refuse_difference(expected, found, "")
        except CaptureError:
            self.failed = self.failed or self.setting

    def stop(self, error: Exception) -> None:
        """Give up the regions that may be the cause of an error in the model's own Python, which ended the check."""
        message = f"the model's own Python fails around the graph of {self.last}: {error}"
        self.failed = self.failed or self.setting or ({self.last: CaptureError(message)} if self.last else {})
        if not self.failed:
            name = type(self.gm).__name__
            raise CaptureError(f"{name} does not run with graphs in the place of its modules: {error}") from error
