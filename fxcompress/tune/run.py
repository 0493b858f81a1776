"""Tuning as a policy states it: each step in order, on the quantized graph."""

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxcompress.errors import NotReadyError
from fxcompress.graph.compare import restored
from fxcompress.graph.edit import INSERTED
from fxcompress.graph.inputs import Arguments, batches
from fxcompress.graph.mode import eval_mode
from fxcompress.measure.calibrate import calibrate
from fxcompress.policies import Tuning
from fxcompress.tune.ada_round import ada_round
from fxcompress.tune.bias_correction import add_biases, bias_correction
from fxcompress.tune.block_reconstruction import block_reconstruction
from fxcompress.tune.finished import contents, finished
from fxcompress.tune.gptq import gptq
from fxcompress.tune.smooth_quant import smooth_quant
from fxcompress.tune.walk import Walk

STEPS: Mapping[str, Callable[..., None]] = {
    "smooth_quant": smooth_quant,
    "bias_correction": bias_correction,
    "ada_round": ada_round,
    "block_reconstruction": block_reconstruction,
    "gptq": gptq,
}


def prepare(gm: fx.GraphModule, steps: Sequence[Tuning]) -> None:
    """Give the graph the parameters that the steps of `tune` will fill, so that a saved model fits without them."""
    if any(step.name == "bias_correction" for step in steps):
        add_biases(gm)


def tune(
    gm: fx.GraphModule,
    steps: Sequence[Tuning],
    data: Iterable[Any] | None,
    positional: int | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> None:
    """Apply the steps of `tune` in order, in eval mode; `gm` is changed. Ranges that a step forgets are found anew.

    The inputs in `data` are read once and held, so that what is learned for a sample is compared with that sample.
    A step of ours takes (gm, walk, finished, **arguments), one of the user's own (gm, data, **arguments). What is
    done is kept under `cache`. Raises NotReadyError where a step needs data and there is none, where data holds NaN,
    and where a step makes a parameter or a buffer NaN or infinite.
    """
    held = functools.cache(lambda: list(_inputs(gm, data, positional)))  # a loader may shuffle what it gives
    walk = Walk(gm, held, several=len(steps) > 1)
    own = [
        one for module in gm.modules() if not isinstance(module, INSERTED) for one in module.buffers(recurse=False)
    ]
    for step in steps:
        function, before = step.function(STEPS), _nonfinite(gm)
        with eval_mode(gm), restored(own):
            if step.name in STEPS:
                kept = finished(cache, step, _fingerprint(held()) if cache and data is not None else "", model=gm)
                function(gm, walk, kept, **step.arguments)
            else:
                function(gm, data, **step.args)
        calibrate(gm, data, positional)
        if made := sorted(_nonfinite(gm) - before):
            raise NotReadyError(
                f"tune: {step.name} makes {made[0]!r} NaN or infinite: what the model computes from the data is, or "
                "is too large to be squared; leave out such data, or the layer from the rules"
            )


def _nonfinite(gm: fx.GraphModule) -> set[str]:
    """Return the names of parameters and buffers that hold NaN or infinity."""
    tensors = gm.state_dict().items()
    return {name for name, one in tensors if one.is_floating_point() and not one.isfinite().all()}


def _inputs(gm: fx.GraphModule, data: Iterable[Any] | None, positional: int | None) -> Iterator[Arguments]:
    if data is None:
        raise NotReadyError("tune needs data: pass data=loader, any iterable of batches")
    position = -1
    for position, batch in enumerate(batches(gm, data, positional)):
        if any(isinstance(leaf, Tensor) and bool(leaf.isnan().any()) for leaf in pytree.tree_leaves(batch.inputs)):
            raise NotReadyError(f"tune: batch {position} of data holds NaN")
        yield batch.inputs
    if position < 0:
        raise NotReadyError("tune needs data, but `data` yielded no batch")


def _fingerprint(inputs: Iterable[Arguments]) -> str:
    digest = hashlib.sha256()
    for arguments in inputs:
        for leaf in pytree.tree_leaves(tuple(arguments)):
            if isinstance(leaf, Tensor):
                digest.update(contents(leaf))
            else:
                digest.update(repr(leaf).encode())
    return digest.hexdigest()
