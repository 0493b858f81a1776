"""What calibration costs: its time over that of the plain forward passes on the same batches, beside a peer.

    python benchmarks/calibration_cost.py --data DIR [--images 1024] [--rounds 5]

ResNet-20 on CIFAR-10 with folded batch norms; the inputs of convolutions, of the last layer and of additions are
observed. Rounds are interleaved, and the median of their ratios is printed. It needs a quiet machine.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import peers
import torch
from cifar10 import resnet, training_subset
from torch import Tensor, fx

import fxcompress
from fxcompress.demo.resnet import ResNet
from fxcompress.measure.calibrate import calibrate
from fxcompress.pipeline import run
from fxcompress.policies import read

OBSERVERS = ("minmax", "percentile", "mse", "entropy")


def graph(model: ResNet, images: Tensor, *quantize: dict[str, Any]) -> fx.GraphModule:
    """Return the graph with its batch norms folded, and quantizers as the step says, none of which has its range."""
    gm = fxcompress.capture(model, images)
    run(read({"version": 1, "steps": ["fold_batch_norm", *quantize]}).steps, gm)
    return gm.eval()


def observing(observer: str) -> dict[str, Any]:
    """Return the step that quantizes inputs."""
    rule = {"select": {"ops": ["conv2d", "linear", "add"]}, "input": {"bits": 8, "observer": observer}}
    return {"kind": "quantize", "rules": [rule]}


def seconds(work: Callable[..., object], *arguments: Any) -> float:
    """Return how long the work takes, without the making of its arguments."""
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def cases(model: ResNet, batches: Sequence[Tensor]) -> Iterator[tuple[str, Callable[[], float], Callable[[], float]]]:
    """Yield what is compared by name: the seconds of the plain forward passes, and those of calibration."""
    ours, theirs = graph(model, batches[0]), peers.plain(model)

    def calibrating(observer: str) -> float:
        return seconds(calibrate, graph(model, batches[0], observing(observer)), batches)

    def calibrating_peer() -> float:
        network = peers.quantized(peers.plain(model), batches[0], (8, 8))
        return seconds(peers.calibrate, network, batches)

    for observer in OBSERVERS:
        yield (
            f"fxcompress, {observer}",
            partial(seconds, peers.forward, ours, batches),
            partial(calibrating, observer),
        )
    yield "Brevitas, percentile", partial(seconds, peers.forward, theirs, batches), calibrating_peer


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    batches = [images for images, _ in training_subset(arguments.data, arguments.images)]
    compared = list(cases(resnet(arguments.data), batches))
    times: list[list[tuple[float, float]]] = [[] for _ in compared]
    for _ in range(arguments.rounds):
        for found, (_, forward, calibrating) in zip(times, compared, strict=True):
            found.append((forward(), calibrating()))
    print(f"{torch.get_num_threads()} threads, {arguments.images} images, {arguments.rounds} rounds\n")
    print("| calibration | forward passes, s | calibration, s | ratio |\n|---|---:|---:|---:|")
    for (name, *_), found in zip(compared, times, strict=True):
        forward, calibrating = (statistics.median(each) for each in zip(*found, strict=True))
        ratio = statistics.median(after / before for before, after in found)
        print(f"| {name} | {forward:.2f} | {calibrating:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
