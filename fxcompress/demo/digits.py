"""The demonstration's data: scikit-learn's handwritten digits, a short training run and the accuracy."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from fxcompress.errors import NotReadyError

EPOCHS = 12
_BATCH = 64


@dataclass(frozen=True)
class Digits:
    """Images of shape (N, 1, 16, 16), normalised, with labels 0..9: 1,198 to train on and 599 held out."""

    train: TensorDataset
    test: TensorDataset


def load() -> Digits:
    """Load the 1,797 digits that come with scikit-learn, the same stratified third of them held out each time.

    Raises NotReadyError where scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise NotReadyError(
            "the demonstration's data needs scikit-learn, which is not installed: pip install fxcompress[demo]"
        ) from error
    digits = load_digits()
    train, test = train_test_split(range(len(digits.target)), test_size=1 / 3, random_state=0, stratify=digits.target)
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)
    images = F.interpolate(images, size=(16, 16), mode="bilinear")
    images = (images - images[train].mean()) / images[train].std()
    labels = torch.tensor(digits.target)
    return Digits(TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test]))


def train(model: nn.Module, data: Digits, *, epochs: int = EPOCHS, seed: int = 0) -> None:
    """Train `model` in place on the training part of `data`, showing the progress, and leave it in evaluation mode.

    SGD with Nesterov momentum, one cycle of the learning rate (Smith and Topin 2018, arXiv:1708.07120), every batch
    shifted by up to one pixel. The order of the images and the shifts follow from `seed`; torch's global generator is
    neither read nor moved.
    """
    images, labels = data.train.tensors
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = epochs * math.ceil(len(labels) / _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
    model.train()
    for _ in track(range(epochs), description="training"):
        for batch in torch.randperm(len(labels), generator=generator).split(_BATCH):
            loss = F.cross_entropy(model(_shift(images[batch], generator)), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def accuracy(predict: Callable[[Tensor], Tensor], dataset: TensorDataset) -> float:
    """Return the share, 0 to 1, of `dataset` for which the largest logit of `predict(images)` is the label's."""
    images, labels = dataset.tensors
    with torch.no_grad():
        logits = torch.cat([predict(batch) for batch in images.split(256)])
    return (logits.argmax(1) == labels).float().mean().item()


def _shift(images: Tensor, generator: torch.Generator) -> Tensor:
    row, column = torch.randint(0, 3, (2,), generator=generator).tolist()
    height, width = images.shape[2:]
    return F.pad(images, (1, 1, 1, 1), mode="replicate")[:, :, row : row + height, column : column + width]
