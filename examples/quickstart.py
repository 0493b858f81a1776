"""Compress a small network of one's own: train, preset, mixed plan under a budget, save, load, run in ONNX Runtime.

python examples/quickstart.py
"""

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

import fxcompress
from fxcompress.demo.digits import accuracy, load, train

POLICY = {
    "version": 1,
    "steps": [
        "fold_batch_norm",
        {"kind": "quantize", "rules": [{"weight": {"bits": [2, 4, 8]}, "input": {"bits": 8}}]},
    ],
    "search": {"budgets": {"size": "16%"}},
}


def network() -> nn.Module:
    """Return an ordinary network."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 16, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def main(epochs: int = 6) -> dict[str, float]:
    """Print what each way to compress keeps of the accuracy, and return it by name."""
    torch.manual_seed(0)
    digits, model = load(), network()
    train(model, digits, epochs=epochs)
    batches = DataLoader(digits.train, batch_size=128)
    kept = {"float32": accuracy(model, digits.test)}

    small = fxcompress.transform(model, "w8a8", data=batches)
    kept["int8"] = accuracy(small, digits.test)

    small = fxcompress.transform(model, POLICY, data=batches, loss=F.cross_entropy)
    fxcompress.report(small).print()
    kept["mixed"] = accuracy(small, digits.test)

    with tempfile.TemporaryDirectory() as folder:
        fxcompress.save(small, Path(folder, "small"))
        again = fxcompress.load(Path(folder, "small"), network())
        lowered = fxcompress.lower(again, Path(folder, "small.onnx"), digits.test.tensors[0][:64])
        kept["mixed in ONNX Runtime"] = accuracy(lambda x: lowered.engine.run(x)[0], digits.test)
        print(f"{lowered.path.name}: {lowered.bytes:,} bytes, apart from PyTorch {lowered.relative_difference:.2%}")
    for name, share in kept.items():
        print(f"{name:<22} {share:.2%}")
    return kept


if __name__ == "__main__":
    main()
