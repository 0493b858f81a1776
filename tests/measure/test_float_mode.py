"""float_mode: the model as it is before quantization, in eval mode, and back."""

import pytest
import torch
from torch import nn

from fxcompress.graph import capture
from fxcompress.measure.calibrate import calibrate
from fxcompress.measure.float_mode import float_mode
from fxcompress.passes import apply
from fxcompress.policies import Prune, Quantize


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4, bias=False), nn.Dropout(0.5), nn.Linear(4, 4, bias=False))


def test_quantizers_and_dropout_are_off_and_masks_on(model):
    gm = capture(model)
    apply(Quantize(rules=({"weight": {"bits": 2}},)), gm)
    apply(Prune(rules=({"sparsity": 0.5},)), gm)
    calibrate(gm, None)
    gm.train()
    gm.get_submodule("0.weight_quantizer").enabled = False
    x = torch.randn(3, 4)
    with float_mode(gm):
        found = gm(x)
    first, second = (gm.get_parameter(f"{i}.weight") * gm.get_submodule(f"{i}.weight_mask").mask for i in (0, 2))
    assert torch.equal(found, x @ first.T @ second.T)
    assert gm.training
    assert gm.get_submodule("1").training
    assert not gm.get_submodule("0.weight_quantizer").enabled
    assert gm.get_submodule("2.weight_quantizer").enabled


def test_the_options_of_a_choice_stay_on(model):
    gm = capture(model)
    apply(Quantize(rules=({"weight": {"bits": (2, 4)}},)), gm)
    calibrate(gm, None)
    option = gm.get_submodule("0.weight_quantizer_choice").options["int2"]
    with float_mode(gm):
        assert not torch.equal(option(gm.get_parameter("0.weight")), gm.get_parameter("0.weight"))


def test_modes_come_back_after_an_error(model):
    gm = capture(model).train()
    with pytest.raises(RuntimeError, match="stop"), float_mode(gm):
        raise RuntimeError("stop")
    assert gm.training
