"""CIFAR-10 images and pretrained weights from a folder of npz and safetensors files, as benchmarks read them."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from fxcompress.demo.resnet import ResNet

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def resnet(folder: Path, depth: int = 20) -> ResNet:
    """Return the network with its published weights (batch counters, which eval mode ignores, are not in them)."""
    model = ResNet(depth)
    weights = load_file(folder / f"resnet{depth}_cifar10.safetensors")
    counters = {name: value for name, value in model.state_dict().items() if name.endswith("num_batches_tracked")}
    model.load_state_dict(weights | counters)
    return model.eval()


def test_set(folder: Path) -> TensorDataset:
    """Return the 10,000 test images, normalised, with their labels."""
    file = np.load(folder / "cifar10_test.npz")
    return TensorDataset(_normalised(file["images"]), torch.from_numpy(file["labels"]).long())


def training_subset(folder: Path, count: int, seed: int = 0, batch: int = 128) -> DataLoader:
    """Return `count` of the first 25,000 training images in batches, chosen by `seed`."""
    file = np.load(folder / "cifar10_train_0.npz")
    chosen = np.random.default_rng(seed).choice(len(file["labels"]), count, replace=False)
    images = decoded(file["delta"])[chosen]
    return DataLoader(TensorDataset(_normalised(images), torch.from_numpy(file["labels"][chosen]).long()), batch)


def accuracy(model: torch.nn.Module, data: TensorDataset) -> float:
    """Return the share of `data` that `model` classifies as labelled."""
    images, labels = data.tensors
    with torch.no_grad():
        found = torch.cat([model(batch).argmax(1) for batch in images.split(500)])
    return (found == labels).float().mean().item()


def decoded(delta: np.ndarray) -> np.ndarray:
    """Undo the differences along width, height and colour, modulo 256: (colour, N, H, W) to (N, H, W, colour)."""
    x = np.cumsum(np.cumsum(delta, axis=2, dtype=np.uint8), axis=3, dtype=np.uint8)
    x[0] += x[1]
    x[2] += x[1]
    return x.transpose(1, 2, 3, 0)


def _normalised(images: np.ndarray) -> Tensor:
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(_MEAN).view(1, 3, 1, 1)) / torch.tensor(_STD).view(1, 3, 1, 1)
