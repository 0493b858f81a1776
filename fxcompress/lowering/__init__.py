"""LEAVE: take a compressed model out of PyTorch: ONNX files with integer weights, and engines that run them."""

from fxcompress.lowering.engine import OnnxRuntime, Timing
from fxcompress.lowering.lowered import Lowered, lower
from fxcompress.lowering.onnx import export_onnx

__all__ = ["Lowered", "OnnxRuntime", "Timing", "export_onnx", "lower"]
