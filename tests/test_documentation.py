"""The page on quantization: each YAML block is a policy or a part of one and runs, and every word is described."""

import re
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from torch import nn

import fxcompress
from fxcompress.nn import Quantizer
from fxcompress.policies import schema
from fxcompress.policies.observing import InputObserver
from fxcompress.policies.policy import Policy
from fxcompress.policies.quantizing import QuantizeRule
from fxcompress.policies.synthesizing import Synthesis
from fxcompress.policies.tuning import Tuning

PAGE = (Path(__file__).parent.parent / "docs" / "quantization.md").read_text()
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
RULE = {"weight": {"bits": 4}, "input": {"bits": 8}}


class Net(nn.Module):
    """Convolutions with batch norms, linear layers behind a layer norm: something for every step."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.norm, self.fc, self.head = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        x = nn.functional.relu6(self.bn1(self.conv1(x)))
        x = nn.functional.relu(self.bn2(self.conv2(x)))
        return self.head(self.fc(self.norm(x.mean((2, 3)))))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        model(torch.randn(16, 3, 6, 6))
    return model.eval()


def whole(block):
    """Return the policy that a block is a part of, each iteration of it a short one."""
    said = short(YAML(typ="safe").load(block))
    if not said.keys() <= Policy.model_fields.keys():
        assert said.keys() <= QuantizeRule.model_fields.keys()
        said = {"steps": [{"kind": "quantize", "rules": [said]}]}
    steps = ["fold_batch_norm", {"kind": "quantize", "rules": [RULE]}]
    return {"version": 1, "steps": steps} | said


def short(said):
    if isinstance(said, dict):
        return {key: 2 if key == "iterations" else short(value) for key, value in said.items()}
    return [short(one) for one in said] if isinstance(said, list) else said


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.filterwarnings("ignore:bias_correction. . of 4 layers", "ignore:smooth_quant. . of 2 linear layers")
def test_every_example_runs(block, net):
    policy, x = whole(block), torch.randn(32, 3, 6, 6)
    given = {} if "data" in policy else {"data": [x]}
    small = fxcompress.transform(net, policy, example_inputs=x, **given)
    assert any(isinstance(module, Quantizer) for module in small.modules())
    assert small(x).isfinite().all()
    assert not torch.equal(small(x), net(x))


@pytest.mark.parametrize("accepts", [Tuning, InputObserver, Synthesis])
def test_every_name_is_there_and_every_argument_with_its_default(accepts):
    for name, arguments in accepts.known().items():
        assert f"`{name}`" in PAGE or f"{name}:" in PAGE, name
        for argument, field in arguments.model_fields.items():
            written = re.findall(rf"\b{argument}: ([\w.]+)", PAGE)
            assert field.default in [YAML(typ="safe").load(value) for value in written], f"{name}: {argument}"


@pytest.mark.parametrize("spec", ["WeightSpec", "InputSpec"])
def test_every_field_of_a_weight_and_an_input_is_shown(spec):
    for field in schema()["$defs"][spec]["properties"]:
        assert any(f"{field}:" in block for block in BLOCKS), field


def test_the_page_is_short():
    assert len(PAGE.splitlines()) < 300
