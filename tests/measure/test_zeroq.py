"""synthesize: batches with the statistics that batch norms remember, measured by hand."""

import pytest
import torch
from torch import nn

from fxcompress.demo.resnet import ResNet
from fxcompress.errors import NotReadyError
from fxcompress.graph import capture
from fxcompress.measure.calibrate import calibrate
from fxcompress.measure.zeroq import synthesize
from fxcompress.passes import apply
from fxcompress.policies import FoldBatchNorm, Quantize


def trained(model, x, seed=0):
    """Return the model in eval mode, its batch norms having seen `x`."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
    model.train()(x)
    return model.eval()


@pytest.fixture
def resnet():
    images = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    return trained(ResNet(8), images.repeat_interleave(2, 3).repeat_interleave(2, 2) * 2 + 0.5)


def away(model, x):
    """Return how far the mean and deviation before each batch norm are from those remembered."""
    total = []

    def measure(norm, inputs):
        sample = inputs[0].flatten(2)
        total.append((sample.mean(2) - norm.running_mean).square().sum() / len(sample))
        total.append((sample.std(2) - norm.running_var.sqrt()).square().sum() / len(sample))

    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    handles = [norm.register_forward_pre_hook(measure) for norm in norms]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return sum(total).item()


def test_the_distance_falls(resnet):
    example = torch.zeros(1, 3, 16, 16)
    (((image,),),) = synthesize(resnet, example, 1, 4, iterations=60)
    assert image.shape == (4, 3, 16, 16)
    assert not image.requires_grad
    noise = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert away(resnet, image) < away(resnet, noise) / 5


def test_a_captured_graph_gives_the_same_as_the_model(resnet):
    example = torch.zeros(1, 3, 16, 16)
    (of_model,) = synthesize(resnet, example, 1, 2, iterations=3)
    (of_graph,) = synthesize(capture(resnet, example), example, 1, 2, iterations=3)
    torch.testing.assert_close(of_model, of_graph, rtol=1e-3, atol=1e-3)


def test_batches_differ_and_follow_from_the_seed(resnet):
    example = {"x": torch.zeros(1, 3, 16, 16)}
    first, again, other = (synthesize(resnet, example, 2, 2, iterations=2, seed=seed) for seed in (0, 0, 1))
    assert len(first) == 2
    assert all(torch.equal(a["x"], b["x"]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0]["x"], first[1]["x"])
    assert not torch.equal(first[0]["x"], other[0]["x"])


def test_the_model_is_not_changed(resnet):
    resnet.train()
    resnet.bn1.eval()
    state = {name: value.clone() for name, value in resnet.state_dict().items()}
    modes = [module.training for module in resnet.modules()]
    synthesize(resnet, torch.zeros(1, 3, 16, 16), 1, 2, iterations=2)
    assert all(torch.equal(value, resnet.state_dict()[name]) for name, value in state.items())
    assert [module.training for module in resnet.modules()] == modes
    assert all(parameter.grad is None for parameter in resnet.parameters())
    assert not any(module._forward_pre_hooks for module in resnet.modules())


def test_calibration_takes_the_batches(resnet):
    example = torch.zeros(1, 3, 16, 16)
    gm = capture(resnet, example)
    data = synthesize(gm, example, 2, 4, iterations=2)
    apply(FoldBatchNorm(), gm)
    apply(Quantize(rules=({"input": {"bits": 8}},)), gm)
    calibrate(gm, data)
    seen = torch.cat([image for ((image,),) in data])
    torch.testing.assert_close(gm.get_submodule("x_quantizer").scale, (seen.max() - seen.min()) / 255)


class Mixed(nn.Module):
    """A convolution with a norm, scaled by an entry of a table, then a linear layer with a norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3)
        self.table, self.fc, self.features = nn.Embedding(5, 3), nn.Linear(3, 4), nn.BatchNorm1d(4)

    def forward(self, x, index, scale):
        y = self.bn(self.conv(x)).relu().mean(2) * self.table(index)
        return self.features(self.fc(y)) * scale


def test_other_inputs_are_kept():
    model = Mixed()
    index = torch.tensor([1, 4, 2])
    example = {"x": torch.zeros(3, 2, 8), "index": index, "scale": torch.ones(4)}
    (batch,) = synthesize(model.eval(), example, 1, 7, iterations=5)
    assert batch["index"].tolist() == [1, 4, 2, 1, 4, 2, 1]
    assert batch["scale"] is example["scale"]
    assert batch["x"].shape == (7, 2, 8)


def test_no_batch_norm():
    message = "Linear has no batch norm that remembers statistics, so no data can be made from them: pass data=loader"
    with pytest.raises(NotReadyError, match=message):
        synthesize(nn.Linear(2, 2), torch.zeros(1, 2), 1, 2)
    with pytest.raises(NotReadyError, match="has no batch norm that remembers statistics"):
        synthesize(nn.BatchNorm1d(2, track_running_stats=False), torch.zeros(1, 2, 3), 1, 2)


def test_no_image():
    with pytest.raises(NotReadyError, match="no example input is floating point with axes for samples, channels and"):
        synthesize(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), torch.zeros(3, 2), 1, 2)


def test_a_norm_that_is_not_called():
    model = nn.Conv1d(1, 1, 1)
    model.unused = nn.BatchNorm1d(1)
    with pytest.raises(NotReadyError, match="the model calls none of its batch norms"):
        synthesize(model, torch.zeros(1, 1, 3), 1, 2)


def test_half_precision():
    """The images are learned in float32 and come out in the precision of the model, near those of the wide one."""
    dtype = torch.float16
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2))
    trained(model, torch.randn(32, 3, 8, 8))
    example, arguments = torch.randn(1, 3, 8, 8), {"batches": 1, "batch_size": 4, "iterations": 30}
    (((wide,),),) = synthesize(model, example, **arguments)
    (((narrow,),),) = synthesize(model.to(dtype), example.to(dtype), **arguments)
    assert narrow.dtype == dtype
    assert (narrow.float() - wide).norm() < 0.1 * wide.norm()
