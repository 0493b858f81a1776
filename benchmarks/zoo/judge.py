"""Everything that is measured of one model: its size, our capture of it, plain torch.fx and plain torch.export."""

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.zoo import forward
from benchmarks.zoo.entries import Case, Entry
from benchmarks.zoo.rows import EQUAL
from fxcompress.graph import capture, layers
from fxcompress.graph.coverage import coverage

_REASON = 400  # characters
Columns = dict[str, Any]


class Expected(NamedTuple):
    """Inputs and what the model itself returns on them: of the captured shapes, and of another batch size."""

    same: list[tuple[Any, Any]]
    larger: list[tuple[Any, Any]]


def judge(entry: Entry, plain: bool) -> Iterator[Columns]:
    """Yield columns of the model's row as they become known; each result is first yielded as what ends it early.

    `plain` asks for plain torch.fx and torch.export beside our capture.
    """
    yield {"capture": "building the model"}
    torch.manual_seed(0)
    try:
        case = entry.build()
        start = time.perf_counter()
        forward.run(case.model, case.example_inputs)
        seconds = time.perf_counter() - start
        same = [(inputs, forward.run(case.model, inputs)) for inputs in (case.example_inputs, case.new_inputs)]
        expected = Expected(same, [(case.larger_inputs, forward.run(case.model, case.larger_inputs))])
    except Exception as error:
        yield {"capture": f"the model itself does not run: {reason(error)}"}
        return
    size = _size(case)
    yield {"forward_seconds": seconds, **size}
    yield {"capture": "capturing"}
    yield _ours(case, expected, size["macs"])
    if plain:
        for name, trace in (("fx", _symbolic), ("export", _export)):
            yield {name: "tracing"}
            yield _plain(name, trace, case, expected)


def _size(case: Case) -> Columns:
    parameters = list(case.model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    with FlopCounterMode(display=False) as counter:
        for parameter in trained:  # the counter's hooks fail where a module returns a parameter of its own
            parameter.requires_grad_(False)
        forward.run(case.model, case.example_inputs)
    for parameter in trained:
        parameter.requires_grad_(True)
    return {"parameters": sum(map(Tensor.numel, parameters)), "macs": counter.get_total_flops() // 2}


def _ours(case: Case, expected: Expected, macs: int) -> Columns:
    """Capture the model; `macs` is torch's own count, which knows no recurrent layers and not every attention."""
    start = time.perf_counter()
    try:
        gm = capture(case.model, case.example_inputs)
    except Exception as error:
        return {"capture": reason(error), "capture_seconds": time.perf_counter() - start}
    seconds, seen = time.perf_counter() - start, coverage(gm)
    first = seen.unseen[0] if seen.unseen else None
    total = max(macs, seen.macs or 0)
    columns: Columns = {
        "macs": total,
        "way": seen.way,
        "tried": "; ".join(_one_line(f"{one.way}: {one.reason}") for one in seen.tried),
        "capture_seconds": seconds,
        "macs_share": (seen.seen_macs or 0) / total if total else 1.0,
        "parameters_share": seen.seen_parameters / seen.parameters if seen.parameters else 1.0,
        "layers": sum(layer.weight is not None for layer in layers(gm)),
        "unseen": len(seen.unseen),
        "first_unseen": _one_line(f"{first.name} ({first.kind}): {first.reason}") if first else "",
    }
    gm.eval()
    columns["capture"], columns["difference"] = _compare(gm, expected.same)
    columns["larger"], columns["larger_difference"] = _compare(gm, expected.larger)
    if _compare(case.model, expected.same) != (EQUAL, 0.0):
        columns["capture"] = "the capture changed the model"
    return columns


def _compare(module: nn.Module, expected: list[tuple[Any, Any]]) -> tuple[str, float | None]:
    """Return what a row says of a module's outputs, and their largest difference where they have one."""
    try:
        apart = max(forward.difference(outputs, forward.run(module, inputs)) for inputs, outputs in expected)
    except Exception as error:
        return reason(error), None
    return EQUAL if apart <= forward.TOLERANCE else f"differs by {apart:.1e}", apart


def _plain(name: str, trace: Callable[[Case], nn.Module], case: Case, expected: Expected) -> Columns:
    start = time.perf_counter()
    try:
        module = trace(case)
    except Exception as error:
        return {name: reason(error), f"{name}_seconds": time.perf_counter() - start}
    seconds = time.perf_counter() - start
    result, _ = _compare(module, expected.same)
    return {name: result, f"{name}_seconds": seconds}


def _symbolic(case: Case) -> nn.Module:
    return fx.symbolic_trace(case.model)


def _export(case: Case) -> nn.Module:
    inputs = case.example_inputs
    args = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, dict) else (inputs,)
    kwargs = inputs if isinstance(inputs, dict) else {}
    return torch.export.export(case.model, args, kwargs, strict=False).module()


def reason(error: BaseException) -> str:
    """Return an error in one line."""
    return _one_line(f"{type(error).__name__}: {error}")


def _one_line(text: str) -> str:
    """Return a text in one line, without the folders that packages are installed in."""
    for folder in sorted(filter(None, sys.path), key=len, reverse=True):
        text = text.replace(f"{folder}/", "")
    return " ".join(text.split())[:_REASON]
