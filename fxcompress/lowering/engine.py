"""The engine: run and time an ONNX file in ONNX Runtime on the CPU."""

import os
import statistics
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxcompress.errors import LoweringError
from fxcompress.graph.inputs import as_arguments
from fxcompress.lowering.private import require


class Timing(NamedTuple):
    """Seconds for one call: the median and the least of several."""

    median: float
    best: float


class OnnxRuntime:
    """Run an ONNX file on the CPU, with `threads` threads (None: as many as ONNX Runtime takes).

    Raises LoweringError where onnxruntime is not installed or cannot read the file.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None) -> None:
        require("onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise LoweringError(f"ONNX Runtime cannot load {os.fspath(path)!r}: {error}") from error
        self.input_names = [value.name for value in self._session.get_inputs()]

    def run(self, *inputs: Any, **named: Any) -> list[Tensor]:
        """Return the outputs for the model's arguments, by position or by name; nested tensors in their order."""
        feed = self._feed(inputs, named)
        try:
            outputs = self._session.run(None, feed)
        except Exception as error:
            raise LoweringError(f"ONNX Runtime cannot run the model: {' '.join(str(error).split())}") from error
        return [torch.from_numpy(output) for output in outputs]

    def time(self, example_inputs: Any, runs: int = 20) -> Timing:
        """Return how long one call takes, measured over `runs` calls after a few that are not counted."""
        arguments = as_arguments(example_inputs)
        feed = self._feed(arguments.args, arguments.kwargs)
        seconds = []
        for _ in range(runs + 3):
            start = time.perf_counter()
            self._session.run(None, feed)
            seconds.append(time.perf_counter() - start)
        return Timing(statistics.median(seconds[3:]), min(seconds[3:]))

    def _feed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        by_name = {name: value for name, value in kwargs.items() if name in self.input_names}
        others = [value for name, value in kwargs.items() if name not in by_name]
        leaves = [leaf for leaf in pytree.tree_leaves((args, others)) if isinstance(leaf, Tensor)]
        names = [name for name in self.input_names if name not in by_name]
        if len(leaves) != len(names):
            raise LoweringError(f"the model takes the tensors {names}, and {len(leaves)} were given")
        feed = by_name | dict(zip(names, leaves, strict=True))
        return {name: value.detach().cpu().numpy() for name, value in feed.items()}
