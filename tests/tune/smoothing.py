"""Networks on inputs with an outlier channel, quantized and smoothed in steps that the tests share."""

import torch
from torch import nn

from fxcompress.graph import capture, verify
from fxcompress.graph.inputs import Arguments
from fxcompress.graph.mode import eval_mode
from fxcompress.measure.calibrate import calibrate
from fxcompress.measure.float_mode import float_mode
from fxcompress.passes import apply
from fxcompress.policies import Quantize
from fxcompress.tune.finished import Finished
from fxcompress.tune.smooth_quant import smooth_quant
from fxcompress.tune.walk import Walk

W8A8 = {"select": {"ops": ["linear", "addmm"]}, "weight": {"bits": 8}, "input": {"bits": 8}}


def batches():
    """Return inputs of which one channel is far larger than the others."""
    x = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(1))
    x[..., 2] *= 30
    return list(x)


def quantized(model, data=None, way="symbolic", steps=(), rule=W8A8):
    data = batches() if data is None else data
    gm = capture(model.eval(), data[0] if way != "symbolic" else None, way=way)
    for step in (*steps, Quantize(rules=(rule,))):
        apply(step, gm)
    calibrate(gm, data)
    return gm


def smooth(gm, data=None, finished=None, alpha=0.5, again=True):
    data = batches() if data is None else data

    def inputs():
        return (Arguments((), x) if isinstance(x, dict) else Arguments((x,)) for x in data)

    with eval_mode(gm):
        smooth_quant(gm, Walk(gm, inputs), finished or Finished(None), alpha=alpha)
    verify(gm)
    if again:
        calibrate(gm, data)
    return gm


def seeded(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model.eval()


def in_float(gm, x):
    with float_mode(gm), torch.no_grad():
        return gm(x)
