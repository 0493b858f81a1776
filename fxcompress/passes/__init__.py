"""DO: passes, one file for each kind of policy step; each edits the graph in place."""

from fxcompress.passes.apply import apply
from fxcompress.passes.fold_batch_norm import fold_batch_norm
from fxcompress.passes.prune import prune
from fxcompress.passes.quantize import quantize
from fxcompress.passes.resolve import resolve
from fxcompress.passes.supernet import supernet

__all__ = ["apply", "fold_batch_norm", "prune", "quantize", "resolve", "supernet"]
