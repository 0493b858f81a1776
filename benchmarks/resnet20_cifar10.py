"""ResNet-20 on CIFAR-10: float, uniform and mixed precision, simulated and in ONNX Runtime, beside its own quantizer.

    python benchmarks/resnet20_cifar10.py --data DIR

DIR holds `resnet20_cifar10.safetensors`, `cifar10_test.npz` and `cifar10_train_0.npz`. Prints Markdown tables.
"""

import argparse
import itertools
import platform
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from cifar10 import accuracy, resnet, test_set, training_subset
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fxcompress
from fxcompress.lowering.engine import OnnxRuntime

MIXED_SIZE = "15%"
SEEDS = (0, 1, 2)


def policy(bits: Any, observer: str, **search: Any) -> dict[str, Any]:
    """Quantize every weight to `bits` and every input to 8 bits."""
    rule = {
        "select": {"ops": ["conv2d", "linear", "add"]},
        "weight": {"bits": bits, "observer": observer},
        "input": {"bits": 8},
    }
    steps = ["fold_batch_norm", {"kind": "quantize", "rules": [rule]}]
    return {"version": 1, "steps": steps} | ({"search": search} if search else {})


def policies() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the compared policies by name; uniform ones with either way to find the range of a weight."""
    for observer in ("minmax", "mse"):
        for bits in (8, 6, 5, 4, 3):
            yield f"uniform W{bits}A8, {observer}", policy(bits, observer)
        mixed = policy([2, 4, 8], observer, budgets={"size": MIXED_SIZE})
        yield f"**mixed W2/4/8 A8 at {MIXED_SIZE}, {observer}**", mixed


def simulated(model: nn.Module, folder: Path, test: TensorDataset) -> Iterator[str]:
    """Yield the table of accuracies of the simulated models over calibration seeds."""
    whole = sum(tensor.numel() * 4 for tensor in model.state_dict().values() if tensor.is_floating_point())
    yield "| model | weights, bytes | of float | top-1, each calibration seed | mean |"
    yield "|---|---:|---:|---|---:|"
    yield f"| float32 | {whole:,} | 100% | | {accuracy(model, test):.2%} |"
    for name, chosen in policies():
        found, size = [], 0
        for seed in SEEDS:
            data = training_subset(folder, 1024, seed)
            small = fxcompress.transform(model, chosen, data=data, loss=F.cross_entropy)
            totals = fxcompress.report(small).record.totals
            found.append(accuracy(small, test))
            size, share = totals.size, totals.size / totals.float_size
        each = ", ".join(f"{value:.2%}" for value in found)
        yield f"| {name} | {size:,} | {share:.1%} | {each} | {statistics.mean(found):.2%} |"


class _Reader(CalibrationDataReader):
    """Feed calibration images to ONNX Runtime's own quantizer."""

    def __init__(self, data: DataLoader) -> None:
        self._batches = iter(data)

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"x": batch[0].numpy()}


class Variant(NamedTuple):
    """A file in the engine."""

    name: str
    path: Path
    engine: OnnxRuntime
    difference: float | None


def engine(model: nn.Module, folder: Path, test: TensorDataset, threads: int) -> Iterator[str]:
    """Yield the table of files run in ONNX Runtime, timed interleaved."""
    images = test.tensors[0]
    data = training_subset(folder, 1024)
    with tempfile.TemporaryDirectory() as temporary:
        variants = []
        mixed = policy([2, 4, 8], "mse", budgets={"size": MIXED_SIZE})
        for name, chosen in (
            ("float32", None),
            ("fxcompress W8A8", "w8a8"),
            (f"fxcompress mixed at {MIXED_SIZE}", mixed),
        ):
            small = model if chosen is None else fxcompress.transform(model, chosen, data=data, loss=F.cross_entropy)
            path = Path(temporary) / f"{len(variants)}.onnx"
            lowered = fxcompress.lower(small, path, images[:64])
            variants.append(Variant(name, path, OnnxRuntime(path, threads), lowered.relative_difference))
        peer = Path(temporary) / "peer.onnx"
        formats = {
            "quant_format": QuantFormat.QDQ,
            "activation_type": QuantType.QUInt8,
            "weight_type": QuantType.QInt8,
        }
        quantize_static(variants[0].path, peer, _Reader(data), per_channel=True, **formats)
        variants.append(Variant("ONNX Runtime's quantize_static U8S8", peer, OnnxRuntime(peer, threads), None))
        yield "| model | file, bytes | top-1 | apart from PyTorch | batch 1, ms (x float) | batch 32, ms (x float) |"
        yield "|---|---:|---:|---:|---:|---:|"
        one, many = timings(variants, images[:1]), timings(variants, images[:32])
        for index, variant in enumerate(variants):
            top1 = accuracy(_Predict(variant.engine.run), test)
            apart = "" if variant.difference is None else f"{variant.difference:.1%}"
            times = " | ".join(f"{t[index]:.2f} ({t[0] / t[index]:.2f}x)" for t in (one, many))
            yield f"| {variant.name} | {variant.path.stat().st_size:,} | {top1:.2%} | {apart} | {times} |"


class _Predict(nn.Module):
    def __init__(self, run: Callable[..., list[Tensor]]) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)[0]


def timings(variants: list[Variant], images: Tensor, rounds: int = 15) -> list[float]:
    """Return the median of interleaved rounds for each variant, in milliseconds."""
    found: list[list[float]] = [[] for _ in variants]
    for _ in range(rounds):
        for times, variant in zip(found, variants, strict=True):
            times.append(variant.engine.time((images,), runs=20).median * 1e3)
    return [statistics.median(times) for times in found]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, test = resnet(arguments.data), test_set(arguments.data)
    versions = f"torch {torch.__version__}, onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}"
    print(f"{platform.machine()}, {arguments.threads} threads, Python {platform.python_version()}, {versions}\n")
    in_engine = engine(model, arguments.data, test, arguments.threads)
    for line in itertools.chain(simulated(model, arguments.data, test), [""], in_engine):
        print(line, flush=True)


if __name__ == "__main__":
    main()
