"""SEE: the model as a graph in normal form, its layers, and the one primitive that edits it."""

from fxcompress.graph.capture import capture
from fxcompress.graph.layers import Layer, layers
from fxcompress.graph.text import text
from fxcompress.graph.verify import verify

__all__ = ["Layer", "capture", "layers", "text", "verify"]
