"""Choice: one of its options runs, or none."""

import pytest
import torch
from torch import nn

from fxcompress.nn import Choice

SETTINGS = {"same": {"weight.bits": "float"}, "rectified": {"weight.bits": 4}}


def choice(**kwargs):
    return Choice({"same": nn.Identity(), "rectified": nn.ReLU()}, SETTINGS, **kwargs)


def test_runs_the_active_option():
    x = torch.tensor([-1.0, 1.0])
    one = choice()
    assert one(x) is x
    one.active = "rectified"
    assert one(x).tolist() == [0.0, 1.0]


def test_without_an_active_option_the_first_input_passes():
    x = torch.ones(1)
    assert choice()(x, torch.zeros(1)) is x


def test_knows_its_options():
    one = choice(active="same")
    assert list(one.options) == list(one.labels) == ["same", "rectified"]
    assert one.settings == SETTINGS
    assert repr(one) == "Choice(same | rectified)"


def test_wrong_arguments():
    with pytest.raises(ValueError, match="at least two options, not 1"):
        Choice({"same": nn.Identity()}, {"same": {}})
    with pytest.raises(ValueError, match="needs settings for each of its options"):
        Choice({"a": nn.Identity(), "b": nn.Identity()}, {"a": {}})
