"""Post-training quantization of ResNet-20 on CIFAR-10: bits by method by seed, beside a peer.

    python benchmarks/post_training.py --data DIR [--only W4A8:ada_round:0 '*:ours'] [--results FILE] [--table]
        [--iterations N]

DIR holds `resnet20_cifar10.safetensors`, `cifar10_test.npz` and `cifar10_train_0.npz`. Each cell that is measured
becomes a line of FILE, and cells that are in it are not measured again: a run that was killed goes on.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from cifar10 import accuracy, resnet, test_set, training_subset
from torch.utils.data import DataLoader, TensorDataset

import fxcompress
from fxcompress.demo.resnet import ResNet

CONVENTIONS = """\
1,024 training images calibrate and tune, chosen by each of three seeds; 10,000 test images measure. Batch norms
are folded. Weights have a symmetric scale for each output channel. Inputs of convolutions, of the last layer and of
additions have one scale and a zero point, biases are float. The first convolution and the last layer have 8 bits,
weights and inputs, as in BRECQ. Both libraries have the settings that were the best of those tried at seed 0. In
fxcompress, scales of weights are those of the least sum of cubed errors, ranges of inputs those of the least squared
error, and all codes are used; where roundings are learned, errors of weights are raised to the power of 2.4 (as in
the code of BRECQ), and ranges of inputs of 8 bits are found by minmax. In Brevitas, scales of weights are those of
the least squared error and the lowest code is left out, its default, and ranges of inputs are percentiles (99.999,
its default, at 8 bits; 99.9 at 4). AdaRound takes 1,000 iterations of 32 images for each layer and block
reconstruction for each residual block; in Brevitas these are its regularized learned rounding by layer and its
learned rounding by block, which does not learn the scales of activations."""

BITS = {"W8A8": (8, 8), "W4A8": (4, 8), "W4A4": (4, 4), "W3A8": (3, 8), "W2A8": (2, 8)}
METHODS = {
    "nearest": "round to nearest",
    "equalization": "equalization",
    "bias_correction": "bias correction",
    "ada_round": "AdaRound",
    "block_reconstruction": "block reconstruction",
}
SEEDS = (0, 1, 2)
NAMES = {"ours": "fxcompress", "peer": "Brevitas"}
IMAGES = 1024
_LEARNED = ("ada_round", "block_reconstruction")
ITERATIONS = 1000


class Cell(NamedTuple):
    """One model to be measured."""

    bits: str
    method: str
    seed: int
    by: str

    def __str__(self) -> str:
        return ":".join(map(str, self))


def cells() -> Iterator[Cell]:
    """Yield all cells: a whole table before the next seed, and in it cheap methods first."""
    for seed in SEEDS:
        for method in METHODS:
            yield from (Cell(bits, method, seed, by) for bits in BITS for by in NAMES)


def policy(bits: str, method: str, iterations: int) -> dict[str, Any]:
    """Return the policy of a cell."""
    weight, entering = BITS[bits]
    learned = method in _LEARNED
    observer = {"mse": {"exponent": 2.4 if learned else 3}}
    eight = "minmax" if learned else "mse"
    rules = [
        {
            "select": {"ops": ["conv2d", "linear", "add"]},
            "weight": {"bits": weight, "narrow": False, "observer": observer},
            "input": {"bits": entering, "observer": eight if entering == 8 else "mse"},
        },
        {
            "select": {"names": ["conv1", "linear"]},
            "weight": {"bits": 8, "narrow": False, "observer": observer},
            "input": {"bits": 8, "observer": eight},
        },
    ]
    equalize = ["equalize"] if method == "equalization" else []
    steps = ["fold_batch_norm", *equalize, {"kind": "quantize", "rules": rules}]
    tune = [{method: {"iterations": iterations}}] if learned else [method] if method == "bias_correction" else []
    return {"version": 1, "steps": steps, "tune": tune}


def ours(model: ResNet, data: DataLoader, test: TensorDataset, cell: Cell, iterations: int) -> tuple[float, float]:
    """Return the seconds that fxcompress took and the accuracy of what it gave."""
    start = time.perf_counter()
    small = fxcompress.transform(model, policy(cell.bits, cell.method, iterations), data=data)
    return time.perf_counter() - start, accuracy(small, test)


def peer(model: ResNet, data: DataLoader, test: TensorDataset, cell: Cell) -> tuple[float, float]:
    """Return the same of the peer."""
    import peers  # only where it is measured: it need not be installed to print the table

    start = time.perf_counter()
    small = peers.brevitas(model, data, BITS[cell.bits], cell.method, cell.seed)
    seconds = time.perf_counter() - start
    with peers.inference(small):
        return seconds, accuracy(small, test)


def measured(results: Path) -> dict[Cell | None, dict[str, float]]:
    """Return what the file holds: top-1 and seconds of each cell, and of the float model under None."""
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    return {Cell(**line["cell"]) if line["cell"] else None: line for line in lines}


def note(results: Path, cell: Cell | None, seconds: float, top1: float) -> None:
    """Append a line to the file."""
    results.parent.mkdir(parents=True, exist_ok=True)
    line = {"cell": cell._asdict() if cell else None, "top1": top1, "seconds": round(seconds, 1)}
    with results.open("a") as file:
        file.write(json.dumps(line) + "\n")


def run(folder: Path, results: Path, only: Sequence[str], iterations: int) -> None:
    """Measure the cells that are asked for and not in the file yet; two runs may share a file."""
    model, test = resnet(folder), test_set(folder)
    if None not in measured(results):
        note(results, None, 0, accuracy(model, test))
    for cell in cells():
        if cell in measured(results) or not any(fnmatchcase(str(cell), f"{pattern}*") for pattern in only):
            continue
        data = training_subset(folder, IMAGES, cell.seed)
        measure = partial(ours, iterations=iterations) if cell.by == "ours" else peer
        seconds, top1 = measure(model, data, test, cell)
        note(results, cell, seconds, top1)
        print(f"{cell} {top1:.2%} {seconds:.0f} s", flush=True)


def table(results: Path) -> Iterator[str]:
    """Yield the results as Markdown: accuracies side by side, and below what compressing took."""
    found = measured(results)
    whole = found[None]["top1"]
    yield f"{CONVENTIONS}\n\nfloat32: {whole:.2%}\n"
    yield "| bits | method |" + "".join(f" {name}, each seed | mean | to float |" for name in NAMES.values())
    yield "|---|---|" + "---|---:|---:|" * len(NAMES)
    for bits in BITS:
        for method, words in METHODS.items():
            sides = (
                [found[cell]["top1"] for seed in SEEDS if (cell := Cell(bits, method, seed, by)) in found]
                for by in NAMES
            )
            yield f"| {bits} | {words} |" + "".join(f" {_side(each, whole)} |" for each in sides)
    yield "\n| method |" + "".join(f" {name}, seconds |" for name in NAMES.values())
    yield "|---|" + "---:|" * len(NAMES)
    for method, words in METHODS.items():
        yield f"| {words} |" + "".join(f" {_seconds(found, method, by)} |" for by in NAMES)


def _side(each: Sequence[float], whole: float) -> str:
    if not each:
        return " | | "
    mean = statistics.mean(each)
    return f"{', '.join(f'{one:.2%}' for one in each)} | {mean:.2%} | {(mean - whole) * 100:+.2f}"


def _seconds(found: Mapping[Cell | None, Mapping[str, float]], method: str, by: str) -> str:
    times = [line["seconds"] for cell, line in found.items() if cell and (cell.method, cell.by) == (method, by)]
    return f"{statistics.median(times):.0f}" if times else ""


def main() -> None:
    """Measure what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder of weights and images; without it nothing is measured")
    parser.add_argument("--only", nargs="+", default=[""], help="cells by the beginning of their name, globs allowed")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/post-training.jsonl"))
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help="of learned roundings, in fxcompress")
    parser.add_argument("--table", action="store_true", help="print the table of what has been measured")
    arguments = parser.parse_args()
    if arguments.data:
        run(arguments.data, arguments.results, arguments.only, arguments.iterations)
    if arguments.table:
        print("\n".join(table(arguments.results)))


if __name__ == "__main__":
    main()
