"""A quantized network whose biases are to be corrected, in steps that the tests share."""

import torch
from torch import nn

from fxcompress.graph import capture, verify
from fxcompress.graph.inputs import Arguments
from fxcompress.graph.mode import eval_mode
from fxcompress.measure.calibrate import calibrate
from fxcompress.passes import apply
from fxcompress.policies import FoldBatchNorm, Quantize
from fxcompress.tune.bias_correction import bias_correction
from fxcompress.tune.finished import Finished
from fxcompress.tune.walk import Walk

W3 = {"weight": {"bits": 3, "per": "tensor"}, "input": {"bits": 8}}


def trained(model):
    """Give a model weights that are always the same, and norms that are not those of a fresh one."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, 1.0 if "norm.weight" in name else 0.0, 0.5)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean)
    return model.eval()


def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, 10, 10, generator=generator) + 0.3 for size in (8, 8, 3)]


def quantized(model, *rules, fold=True, data=None):
    gm = capture(model)
    if fold:
        apply(FoldBatchNorm(), gm)
    apply(Quantize(rules=rules or (W3,)), gm)
    calibrate(gm, batches() if data is None else data)
    return gm.eval()


def walk(gm, data=None):
    return Walk(gm, lambda: (Arguments((x,)) for x in (batches() if data is None else data)))


def correct(gm, statistics="data", finished=None):
    with eval_mode(gm):
        bias_correction(gm, walk(gm), finished or Finished(None), statistics=statistics)
    verify(gm)
    return gm
