"""What reconstruction makes of its data: shuffled, in any unit, and of parameters that the model itself reads."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from fxcompress import transform
from tests.tune.test_reconstruction import STEPS, error


@pytest.mark.parametrize("way", ["symbolic", "islands"])
@pytest.mark.parametrize("step", STEPS)
def test_a_loader_that_shuffles(net, images, tuned, step, way):
    """What a sample should give is compared with what that sample gives."""
    nearest = error(transform(net, tuned(), data=images, capture=way), net, images)
    torch.manual_seed(0)
    loader = DataLoader(torch.cat(images), batch_size=16, shuffle=True)
    small = transform(net, tuned({step: {"iterations": 150}}), data=loader, capture=way)
    assert error(small, net, images) < 0.8 * nearest


@pytest.mark.parametrize("gain", [1e-3, 1.0])
def test_learned_scales_have_no_unit(net, images, tuned, gain):
    """A scale is far smaller than a step of the learning rate; it stays positive, and the output near."""
    with torch.no_grad():
        net.stem.weight.div_(gain)
    data = [gain * x for x in images]
    nearest = transform(net, tuned(weight=8), data=data)
    step = {"block_reconstruction": {"iterations": 100, "scale_learning_rate": 1e-2}}
    small = transform(net, tuned(step, weight=8), data=data)
    scales = {name: value for name, value in small.state_dict().items() if name.endswith("scale")}
    for name, scale in scales.items():
        assert ((scale / nearest.state_dict()[name]).log().abs() < 1).all(), name
    assert error(small, net, data) < 1.5 * error(nearest, net, data)


class Reads(nn.Module):
    """Its own Python reads the weight of the head as an embedding, and adds the bias of the other layer."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(6, 6), nn.Linear(6, 9, bias=False)

    def forward(self, x):
        x = F.embedding(x, self.head.weight)
        return self.head(torch.relu(self.first(x)) + self.first.bias)


@pytest.mark.parametrize("step", [*STEPS, "gptq", "bias_correction"])
def test_what_the_model_itself_reads_is_left(step):
    torch.manual_seed(0)
    model, data = Reads(), list(torch.randint(9, (3, 16)))
    steps = [{"kind": "quantize", "rules": [{"select": {"ops": ["linear"]}, "weight": {"bits": 3}}]}]
    arguments = {"iterations": 50} if step in STEPS else {}
    left, message = ("head.weight", "'head'.*: the model's own Python reads its parameter for something else")
    if step == "bias_correction":
        left, message = ("first.bias", r"'first'\): they lack a bias of their own")
    with pytest.warns(UserWarning, match=message):
        small = transform(
            model, {"version": 1, "steps": steps, "tune": [{step: arguments}]}, data=data, capture="islands"
        )
    assert torch.equal(small.get_parameter(left), model.get_parameter(left))
