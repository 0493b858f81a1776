"""Tests of the ONNX functions in the onnx reference implementation."""

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from fxcompress.lowering.functions import local_functions


def _run(name, inputs, types, output_type, **attributes):
    function = next(function for function in local_functions() if function.name == name)
    opset = [helper.make_opsetid("", 18), helper.make_opsetid("fxcompress", 1)]
    given = [
        helper.make_tensor_value_info(key, kind, inputs[key].shape) for key, kind in zip(inputs, types, strict=True)
    ]
    node = helper.make_node(name, list(inputs), ["y"], domain="fxcompress", **attributes)
    graph = helper.make_graph([node], "g", given, [helper.make_tensor_value_info("y", output_type, ["m", "n"])])
    model = helper.make_model(graph, opset_imports=opset, functions=[onnx_ir.to_proto(function)])
    onnx.checker.check_model(model)
    return ReferenceEvaluator(model).run(None, inputs)[0]


@pytest.mark.parametrize("bits", range(2, 8))
def test_unpack(bits):
    codes = np.random.default_rng(bits).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (3, 5)).astype(np.int8)
    stream = np.unpackbits((codes.reshape(-1, 1).astype(np.uint8)), axis=1)[:, 8 - bits :]
    places = [-64, 32, 16, 8, 4, 2, 1][:bits]
    packed = {"packed": np.packbits(stream)}
    found = _run("Unpack", packed, [TensorProto.UINT8], TensorProto.INT8, places=places, shape=[3, 5])
    np.testing.assert_array_equal(found, codes << (7 - bits))


def test_dequantize():
    inputs = {
        "codes": np.array([[1, 2], [-3, 4]], np.int8),
        "scale": np.array([0.5, 2.0], np.float32),
        "zero_point": np.array([1, 0], np.int8),
    }
    types = [TensorProto.INT8, TensorProto.FLOAT, TensorProto.INT8]
    found = _run("Dequantize", inputs, types, TensorProto.FLOAT, shape=[-1, 1])
    np.testing.assert_array_equal(found, [[0.0, 0.5], [-6.0, 8.0]])
