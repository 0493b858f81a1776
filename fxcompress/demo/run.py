"""The demonstration from start to end: train, compress, lower, run in ONNX Runtime, compare."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fxcompress.checkpoint import save
from fxcompress.demo.digits import Digits, accuracy, load, train
from fxcompress.demo.resnet import ResNet
from fxcompress.lowering.lowered import Lowered, lower
from fxcompress.pipeline import transform
from fxcompress.policies import parse, show
from fxcompress.reporting.report import report

POLICY = "digits-mixed.yaml"


@dataclass(frozen=True)
class Row:
    """One line of the final table."""

    name: str
    accuracy: float
    lowered: Lowered


def run(folder: Path, console: Console) -> list[Row]:
    """Run the demonstration, write its files into `folder`, print the comparison and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    digits, model = load(), ResNet(20, in_channels=1)
    console.print("Training ResNet-20 (270 k parameters) on scikit-learn's handwritten digits, 16x16 ...")
    train(model, digits)
    batches = DataLoader(digits.train, batch_size=128)

    console.print("Compressing: uniform int8, and mixed bits and sparsity under budgets ...")
    uniform = transform(model, "w8a8", data=batches)
    policy = parse((resources.files("fxcompress.demo") / POLICY).read_text("utf-8"), POLICY)
    mixed = transform(model, policy, data=batches, loss=F.cross_entropy)
    report(mixed).print(console)
    save(mixed, folder / "mixed")

    console.print("Lowering to ONNX and running the held-out third in ONNX Runtime ...")
    rows = [_lowered(name, small, digits, folder) for name, small in _variants(model, uniform, mixed)]
    console.print(_table(rows))
    console.print(f"Files are in {folder}; repeat with other budgets: edit examples/policies/{POLICY}")
    return rows


def _variants(model: nn.Module, uniform: nn.Module, mixed: nn.Module) -> list[tuple[str, nn.Module]]:
    return [("float32", model), ("uniform int8", uniform), ("mixed plan", mixed)]


def _lowered(name: str, model: nn.Module, digits: Digits, folder: Path) -> Row:
    images, _ = digits.test.tensors
    lowered = lower(model, folder / f"{name.replace(' ', '-')}.onnx", images[:64])
    return Row(name, accuracy(_predict(lowered), digits.test), lowered)


def _predict(lowered: Lowered) -> Callable[[Tensor], Tensor]:
    return lambda images: lowered.engine.run(images)[0]


def _table(rows: list[Row]) -> Table:
    table = Table(title="Held-out digits in ONNX Runtime", title_justify="left")
    table.add_column("model")
    for name in ("accuracy", "file", "weights", "latency, 1 image"):
        table.add_column(name, justify="right")
    for row in rows:
        low = row.lowered
        latency = f"{low.engine.time(torch.randn(1, 1, 16, 16), runs=200).median * 1e3:.2f} ms"
        table.add_row(
            row.name, f"{row.accuracy:.2%}", show("size", low.bytes), show("size", low.weight_bytes), latency
        )
    return table
