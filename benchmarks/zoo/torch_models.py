"""Small models of torch's own modules."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from benchmarks.zoo.entries import Case, Entry, case, images

_WIDTH, _HEADS, _STEPS = 32, 4, 10
_Inputs = Callable[[int], Any]


def entries() -> Iterator[Entry]:
    """Yield attention, recurrent, convolutional and dense models."""
    for family, models in _MODELS.items():
        for name, (build, inputs) in models.items():
            yield Entry("torch", family, name, partial(_case, build, inputs))


def _case(build: Callable[[], nn.Module], inputs: _Inputs) -> Case:
    return case(build(), inputs)


def _sequences(count: int) -> _Inputs:
    return lambda batch: tuple(torch.randn(batch, _STEPS + index, _WIDTH) for index in range(count))


def _rows(count: int = 1) -> _Inputs:
    return lambda batch: tuple(torch.randn(batch, _WIDTH) for _ in range(count))


def _tokens(batch: int) -> Tensor:
    return torch.randint(0, 50, (batch, _STEPS))


def _encoder(**options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(_WIDTH, _HEADS, 64, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def _decoder() -> nn.Module:
    return nn.TransformerDecoder(nn.TransformerDecoderLayer(_WIDTH, _HEADS, 64, batch_first=True), 2)


class _Classifier(nn.Module):
    """Embedded tokens, a recurrent module and a linear layer on its last step."""

    def __init__(self, recurrent: nn.Module, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, _WIDTH)
        self.recurrent = recurrent
        self.head = nn.Linear(width, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        steps, _ = self.recurrent(self.embedding(tokens))
        return self.head(steps[:, -1])


class _Unrolled(nn.Module):
    """A recurrent cell in a loop over the steps."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return state[0] if isinstance(state, tuple) else state


def _convolved(norm: nn.Module, activation: nn.Module) -> nn.Module:
    first = nn.Conv2d(3, 16, 3, padding=1)
    rest = (nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, stride=2, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(first, norm, activation, *rest, nn.Linear(32, 10))


def _decoded() -> nn.Module:
    down = (nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU())
    up = (
        nn.ConvTranspose2d(16, 8, 2, stride=2),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(8, 12, 1),
        nn.PixelShuffle(2),
    )
    return nn.Sequential(*down, *up)


def _dense(*activations: nn.Module) -> nn.Module:
    layers = [layer for activation in activations for layer in (nn.Linear(_WIDTH, _WIDTH), activation)]
    return nn.Sequential(*layers, nn.Dropout(), nn.Linear(_WIDTH, 10))


def _attention(**options: Any) -> nn.Module:
    return nn.MultiheadAttention(_WIDTH, _HEADS, batch_first=True, **options)


_MODELS: dict[str, dict[str, tuple[Callable[[], nn.Module], _Inputs]]] = {
    "attention": {
        "Transformer": (lambda: nn.Transformer(_WIDTH, _HEADS, 2, 2, 64, batch_first=True), _sequences(2)),
        "TransformerEncoder": (_encoder, _sequences(1)),
        "TransformerEncoder, norm first": (lambda: _encoder(norm_first=True, activation="gelu"), _sequences(1)),
        "TransformerDecoder": (_decoder, _sequences(2)),
        "MultiheadAttention": (_attention, lambda batch: (torch.randn(batch, _STEPS, _WIDTH),) * 3),
        "MultiheadAttention, other widths": (
            lambda: _attention(kdim=16, vdim=24, add_bias_kv=True),
            lambda batch: tuple(torch.randn(batch, _STEPS, width) for width in (_WIDTH, 16, 24)),
        ),
    },
    "recurrent": {
        "LSTM": (lambda: nn.LSTM(_WIDTH, 24, 2, batch_first=True), _sequences(1)),
        "GRU": (lambda: nn.GRU(_WIDTH, 24, 2, batch_first=True), _sequences(1)),
        "RNN": (lambda: nn.RNN(_WIDTH, 24, batch_first=True), _sequences(1)),
        "LSTM classifier, both ways": (
            lambda: _Classifier(nn.LSTM(_WIDTH, 24, bidirectional=True, batch_first=True), 48),
            _tokens,
        ),
        "LSTM classifier, projected": (
            lambda: _Classifier(nn.LSTM(_WIDTH, 24, proj_size=8, batch_first=True), 8),
            _tokens,
        ),
        "GRU classifier": (lambda: _Classifier(nn.GRU(_WIDTH, 24, batch_first=True), 24), _tokens),
        "LSTMCell": (lambda: _Unrolled(nn.LSTMCell(_WIDTH, 24)), _sequences(1)),
        "GRUCell": (lambda: _Unrolled(nn.GRUCell(_WIDTH, 24)), _sequences(1)),
    },
    "convolutional": {
        "Conv2d, BatchNorm2d": (lambda: _convolved(nn.BatchNorm2d(16), nn.ReLU(inplace=True)), images(32)),
        "Conv2d, GroupNorm": (lambda: _convolved(nn.GroupNorm(4, 16), nn.SiLU()), images(32)),
        "Conv2d, InstanceNorm2d": (lambda: _convolved(nn.InstanceNorm2d(16, affine=True), nn.PReLU()), images(32)),
        "Conv2d, LocalResponseNorm": (lambda: _convolved(nn.LocalResponseNorm(3), nn.Hardswish()), images(32)),
        "Conv2d, weight norm": (
            lambda: nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Conv2d(8, 4, 1)),
            images(16),
        ),
        "ConvTranspose2d, PixelShuffle": (_decoded, images(16)),
        "Conv1d": (
            lambda: nn.Sequential(nn.Conv1d(4, 16, 5, dilation=2), nn.BatchNorm1d(16), nn.ELU(), nn.AvgPool1d(2)),
            lambda batch: torch.randn(batch, 4, 40),
        ),
        "Conv3d": (
            lambda: nn.Sequential(nn.Conv3d(3, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d(2)),
            lambda batch: torch.randn(batch, 3, 6, 10, 10),
        ),
        "Unfold, Linear, Fold": (
            lambda: nn.Sequential(nn.Unfold(4, stride=4), nn.Linear(16, 16), nn.Fold((16, 16), 4, stride=4)),
            images(16),
        ),
    },
    "dense": {
        "Linear": (lambda: _dense(nn.ReLU(), nn.GELU(), nn.Tanh(), nn.Mish()), _rows()),
        "Linear, LayerNorm": (lambda: _dense(nn.LayerNorm(_WIDTH), nn.Softplus(), nn.RMSNorm(_WIDTH)), _rows()),
        "Bilinear": (lambda: nn.Bilinear(_WIDTH, _WIDTH, 8), _rows(2)),
        "EmbeddingBag": (lambda: nn.Sequential(nn.EmbeddingBag(50, _WIDTH), nn.Linear(_WIDTH, 10)), _tokens),
        "CosineSimilarity": (nn.CosineSimilarity, _rows(2)),
    },
}
