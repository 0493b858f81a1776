"""HOLD: the modules that passes put on edges; all learned state is their buffers and parameters."""

from fxcompress.nn.choice import Choice
from fxcompress.nn.mask import Mask
from fxcompress.nn.quantizer import Quantizer

__all__ = ["Choice", "Mask", "Quantizer"]
