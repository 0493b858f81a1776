"""transform without a copy: the same result, in the memory of the model that was given."""

import pytest
import torch
from torch import nn

from fxcompress import transform


@pytest.mark.parametrize("way", ["symbolic", "export", "islands"])
@pytest.mark.parametrize("tune", [(), ("bias_correction",)])
def test_without_a_copy_the_result_is_the_same_and_takes_the_parameters_over(way, tune):
    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()

    data = [torch.randn(4, 3, 8, 8)]
    rules = [{"weight": {"bits": 4}, "input": {"bits": 8}}]
    steps = ["fold_batch_norm", "equalize", {"kind": "quantize", "rules": rules}]
    policy = {"version": 1, "steps": steps if way != "islands" else steps[::2], "tune": tune}
    copied, taken = model(), model()
    expected = transform(copied, policy, data=data, capture=way)
    found = transform(taken, policy, data=data, capture=way, copy=False)
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    assert found.get_parameter("3.weight").data_ptr() == taken[3].weight.data_ptr()
    assert expected.get_parameter("3.weight").data_ptr() != copied[3].weight.data_ptr()


def test_what_is_open_is_tried_on_a_copy():
    """A supernet captures twice: the second time must not find what the first has changed."""

    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()

    steps = ["equalize", {"kind": "supernet", "rules": [{"select": {"names": ["0"]}, "kernel_size": [3, 5]}]}]
    expected, found = (transform(model(), {"version": 1, "steps": steps}, copy=copy) for copy in (True, False))
    assert all(torch.equal(found.state_dict()[name], value) for name, value in expected.state_dict().items())


@pytest.mark.parametrize("tune", [(), ("bias_correction",), ({"ada_round": {"iterations": 2}},)])
def test_what_transform_runs_is_not_counted(tune):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x):
            self.count.add_(1)
            return self.layer(x) / self.count

    rules = [{"weight": {"bits": 4}, "input": {"bits": 8}}]
    policy = {"version": 1, "steps": [{"kind": "quantize", "rules": rules}], "tune": tune}
    for way in ("symbolic", "islands"):
        small = transform(Counting(), policy, data=[torch.randn(2, 4)], capture=way)
        assert small.get_buffer("count") == 0
