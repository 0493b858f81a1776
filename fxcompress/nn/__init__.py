"""HOLD: the modules that passes put on edges; all learned state is their buffers and parameters."""

from fxcompress.nn.channel_split import ChannelSplit
from fxcompress.nn.choice import Choice
from fxcompress.nn.codebook import CodebookQuantizer
from fxcompress.nn.dynamic import DynamicQuantizer
from fxcompress.nn.float8 import Float8Quantizer
from fxcompress.nn.layout import Layout
from fxcompress.nn.mask import Mask
from fxcompress.nn.quantizer import Quantizer
from fxcompress.nn.uniform import UniformQuantizer

__all__ = [
    "ChannelSplit",
    "Choice",
    "CodebookQuantizer",
    "DynamicQuantizer",
    "Float8Quantizer",
    "Layout",
    "Mask",
    "Quantizer",
    "UniformQuantizer",
]
