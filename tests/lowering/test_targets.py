"""What a target promises, seen in the engine's own graph: with it no kernel is left in float, without it some are."""

import torch
import torch.nn.functional as F
from torch import nn

from fxcompress import lower, transform

FLOAT = ("Conv", "Add", "Concat", "AveragePool", "GlobalAveragePool")


class Joining(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.c, self.d = nn.Conv2d(8, 8, 1), nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.a(x)), 2)
        x = F.relu(x + self.b(x))
        x = F.relu(self.d(torch.cat([self.c(x), x], 1)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def test_onnxruntime_runs_all_of_it_in_integers(kernels, tmp_path):
    torch.manual_seed(0)
    model, data = Joining().eval(), [torch.randn(8, 3, 8, 8)]
    rules = [{"weight": {"bits": 8}, "input": {"bits": 8}}]
    found = {}
    for target in ("none", "onnxruntime"):
        policy = {"version": 1, "target": target, "steps": [{"kind": "quantize", "rules": rules}]}
        lower(transform(model, policy, data=data), tmp_path / f"{target}.onnx", data[0])
        found[target] = kernels(tmp_path / f"{target}.onnx")
    assert sum(found["none"][kind] for kind in FLOAT) > 0
    assert {kind: found["onnxruntime"][kind] for kind in FLOAT} == dict.fromkeys(FLOAT, 0)
    assert found["onnxruntime"]["QLinearConv"] == 4
