"""Settings of torch while it exports: nothing fused, nothing with a gradient of its own, no word to the terminal."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import torch

from fxcompress.graph.tracing.gradients import own_gradients_refused


@contextlib.contextmanager
def traceable() -> Iterator[None]:
    """Let torch.export see all operators of a model, and keep to itself what it has to say of them.

    Attention does without its fused operator. Raises CaptureError for gradients of the model's own making.
    """
    level, fast_path = logging.root.manager.disable, torch.backends.mha.get_fastpath_enabled()
    logging.disable(logging.CRITICAL)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with own_gradients_refused(), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        logging.disable(level)
