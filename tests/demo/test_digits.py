"""The demonstration's data, its training run and its accuracy."""

import sys

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from fxcompress.demo import digits
from fxcompress.demo.resnet import ResNet
from fxcompress.errors import NotReadyError


@pytest.fixture(scope="module")
def data():
    return digits.load()


def test_two_thirds_to_train_on_and_a_third_held_out(data):
    assert data.train.tensors[0].shape == (1198, 1, 16, 16)
    assert data.test.tensors[0].shape == (599, 1, 16, 16)
    for digit, count in enumerate(torch.bincount(torch.tensor(load_digits().target))):
        assert abs((data.test.tensors[1] == digit).sum() - count / 3) < 1


def test_images_are_normalised_and_belong_to_one_part(data):
    images = data.train.tensors[0]
    assert images.mean().item() == pytest.approx(0, abs=1e-5)
    assert images.std().item() == pytest.approx(1, abs=1e-5)
    together = torch.cat([images, data.test.tensors[0]]).flatten(1)
    assert len(together.unique(dim=0)) == len(load_digits().target)


def test_the_split_is_the_same_each_time(data):
    assert torch.equal(digits.load().test.tensors[0], data.test.tensors[0])


def test_training_learns_and_leaves_the_global_generator_alone(data):
    torch.manual_seed(0)
    model = ResNet(8, in_channels=1)
    state = torch.get_rng_state()
    digits.train(model, data, epochs=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert digits.accuracy(model, data.test) > 0.8


def test_accuracy_counts_the_largest_logit():
    dataset = TensorDataset(torch.eye(4), torch.tensor([0, 1, 2, 0]))
    assert digits.accuracy(nn.Identity(), dataset) == 0.75


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(NotReadyError, match=r"pip install fxcompress\[demo\]"):
        digits.load()
