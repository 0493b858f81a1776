"""What capture costs: ResNet-50 beside its forward pass, graphs of 1,000 to 10,000 nodes, and memory.

    make bench-capture     # or: python benchmarks/capture_cost.py [--plot FILE.svg]

Needs torchvision for ResNet-50, and matplotlib for a plot. Prints Markdown tables.
"""

import argparse
import importlib
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from zoo.torchvision_operators import declare

from fxcompress.graph import capture, verify
from fxcompress.graph.channels import channel_groups

NODES = (1_000, 3_000, 10_000)
_NODES_OF_A_BLOCK = 6  # convolution, its weight and bias, batch norm, relu, add


class Block(nn.Module):
    """A residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x))) + x


def seconds(function: Callable[[], Any], repeats: int) -> float:
    """Return the least time of several runs."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return min(taken)


def resnet50() -> None:
    """Time the capture of ResNet-50 beside its forward pass."""
    declare()
    model, x = importlib.import_module("torchvision.models").resnet50().eval(), torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        model(x)
        forward = seconds(lambda: model(x), 5)
    captured = seconds(lambda: capture(model, x), 5)
    print("| ResNet-50, 224 px, batch 1 | seconds |\n|---|---:|")
    print(f"| forward pass | {forward:.2f} |\n| capture, with copy and comparison | {captured:.2f} |")
    print(f"| 3 forward passes + 1 s | {3 * forward + 1:.2f} |\n")


def chains() -> dict[str, list[float]]:
    """Time capture, channel groups and verification of chains of residual blocks."""
    capture(Block(), torch.randn(1, 4, 6, 6))  # imports and caches
    rows: dict[str, list[float]] = {"capture": [], "channel groups": [], "verify": []}
    print("| nodes | forward | capture | channel groups | verify | all three |\n|---:|---:|---:|---:|---:|---:|")
    for nodes in NODES:
        made, forward, *times = chain(nodes)
        for row, taken in zip(rows.values(), times, strict=True):
            row.append(taken)
        cells = " | ".join(f"{one:.2f} s" for one in (forward, *times, sum(times)))
        print(f"| {made:,} | {cells} |", flush=True)
    print()
    return rows


def chain(nodes: int) -> tuple[int, float, float, float, float]:
    """Return how many nodes a chain has, and the seconds of its forward, capture, channel groups and verification."""
    model = nn.Sequential(*(Block() for _ in range(nodes // _NODES_OF_A_BLOCK))).eval()
    x = torch.randn(1, 4, 6, 6)
    found: list[fx.GraphModule] = []
    with torch.no_grad():
        forward = seconds(lambda: model(x), 3)
    captured = seconds(lambda: found.append(capture(model, x)), 1)
    (gm,) = found
    grouped, verified = seconds(lambda: channel_groups(gm, x), 1), seconds(lambda: verify(gm), 1)
    return len(gm.graph.nodes), forward, captured, grouped, verified


def kilobytes(kind: str) -> int:
    """Return what Linux says of this process: VmRSS is what it takes, VmHWM the most that it took."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(kind)))


def peak(copy: bool, way: str) -> None:
    """Print how far capture raises the peak memory of this process, in sizes of the model's weights."""
    model = nn.Sequential(*(nn.Linear(4096, 4096) for _ in range(8)))
    size = sum(parameter.nbytes for parameter in model.parameters())
    x = torch.randn(2, 4096)
    capture(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4), way=way)  # imports and caches
    with torch.no_grad():
        model(x)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    before = kilobytes("VmRSS")
    capture(model, x, way=way, copy=copy)
    raised = (kilobytes("VmHWM") - before) * 1024
    print(f"| {way} | {'yes' if copy else 'no'} | {size / 2**20:.0f} MiB | {raised / size:.2f} |", flush=True)


def memory() -> None:
    """Measure peaks, each in a process of its own."""
    print("| way | copy | weights | peak memory on top, in sizes of the weights |\n|---|---|---:|---:|", flush=True)
    for way in ("symbolic", "export", "islands"):
        for copy in (True, False):
            process = multiprocessing.get_context("spawn").Process(target=peak, args=(copy, way))
            process.start()
            process.join()


def plot(rows: dict[str, list[float]], path: str) -> None:
    """Draw the times over the number of nodes."""
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    below = [0.0] * len(NODES)
    for name, times in rows.items():
        above = [low + more for low, more in zip(below, times, strict=True)]
        axes.fill_between(NODES, below, above, label=name, alpha=0.6)
        below = above
    axes.plot(NODES, below, "k.-")
    axes.set(xlabel="nodes", ylabel="seconds", xlim=(0, None), ylim=(0, None))
    axes.legend(loc="upper left")
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", help="where to write the plot of times over nodes, an SVG file")
    torch.set_num_threads(1)
    resnet50()
    measured = chains()
    memory()
    if parser.parse_args().plot:
        plot(measured, parser.parse_args().plot)
