"""Power-of-two scales from a policy to a saved model."""

import torch
from torch import nn

from fxcompress import load, save, transform


def test_power_of_two_scales_from_policy_to_disk(tmp_path):
    spec = {"bits": 8, "power_of_two": True}
    policy = {"version": 1, "steps": [{"kind": "quantize", "rules": [{"weight": spec, "input": spec}]}]}
    data = [torch.randn(4, 1, 6, 6)]
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval()
    small = transform(model, policy, data=data)
    scales = [value for name, value in small.state_dict().items() if name.endswith("scale")]
    assert scales
    assert all((torch.frexp(scale).mantissa == 0.5).all() for scale in scales)
    save(small, tmp_path / "small")
    assert torch.equal(load(tmp_path / "small", model)(data[0]), small(data[0]))
