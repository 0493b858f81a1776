"""DO: passes, one file for each kind of policy step; each edits the graph in place."""

from fxcompress.passes.apply import apply
from fxcompress.passes.equalize import equalize
from fxcompress.passes.fold_batch_norm import fold_batch_norm
from fxcompress.passes.prune import prune
from fxcompress.passes.quantize import quantize
from fxcompress.passes.resolve import resolve
from fxcompress.passes.split_channels import split_channels
from fxcompress.passes.supernet import supernet

__all__ = ["apply", "equalize", "fold_batch_norm", "prune", "quantize", "resolve", "split_channels", "supernet"]
