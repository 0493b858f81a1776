"""Published networks, quantized: ResNet-56 and ResNet-8 on CIFAR-10, and a pruned SqueezeNet on ImageNet images.

    python benchmarks/real_weights.py --data DIR [--only 'ResNet-56 W4A8'] [--seeds 0 1 2] [--images N] [--cache DIR]

DIR holds `resnet56_cifar10.safetensors`, `resnet8_cifar10.safetensors`, `cifar10_test.npz`, `cifar10_train_0.npz`,
`squeezenet1_0_deep_compression.safetensors` and `imagenet_sample_300.npz`. Prints Markdown tables. With `--cache`,
tuning that was killed goes on where it was.
"""

import argparse
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cifar10
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import fxcompress
from fxcompress.graph import layers

IMAGES = 1024  # training images of CIFAR-10 that calibrate and tune
IMAGENET_IMAGES = 60  # of the 300; the others measure
ITERATIONS = 500


class TinyBlock(nn.Module):
    """A residual block with the padding of TensorFlow: what is needed, the larger half behind."""

    def __init__(self, planes_in: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(planes_in, planes, 3, stride), nn.BatchNorm2d(planes, eps=1e-3)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, padding=1), nn.BatchNorm2d(planes, eps=1e-3)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(planes_in, planes, 1, stride)
        self.ends = (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(F.pad(x, self.ends))))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet8(nn.Module):
    """MLPerf Tiny's network for CIFAR-10 (Banbury et al. 2021): images of 0 to 255 to 10 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.ModuleDict({"conv": nn.Conv2d(3, 16, 3, padding=1), "bn": nn.BatchNorm2d(16, eps=1e-3)})
        self.block1, self.block2, self.block3 = TinyBlock(16, 16, 1), TinyBlock(16, 32, 2), TinyBlock(32, 64, 2)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem["bn"](self.stem["conv"](x)))
        x = self.block3(self.block2(self.block1(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Fire(nn.Module):
    """Fewer channels, then 1x1 and 3x3 kernels side by side."""

    def __init__(self, planes_in: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(planes_in, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], dim=1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.0 (Iandola et al. 2016): images of 227 x 227 less their mean to 1000 logits."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {3: (96, 16, 64), 4: (128, 16, 64), 5: (128, 32, 128), 7: (256, 32, 128), 8: (256, 48, 192)}
        sizes |= {9: (384, 48, 192), 10: (384, 64, 256), 12: (512, 64, 256)}
        parts: list[nn.Module] = [nn.Conv2d(3, 96, 7, 2), nn.ReLU()]
        parts += [Fire(*sizes[n]) if n in sizes else nn.MaxPool2d(3, 2, ceil_mode=True) for n in range(2, 13)]
        self.features = nn.Sequential(*parts)
        self.classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(512, 1000, 1, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.classifier(self.features(x)), 1).flatten(1)


class Case(NamedTuple):
    """One way to quantize: what it is called, and its policy."""

    name: str
    policy: dict[str, Any]


def policy(weight: Any, entering: Any = None, steps: Sequence[Any] = (), tune: Sequence[Any] = ()) -> dict[str, Any]:
    """Quantize all weights, and where `entering` says how, the inputs of layers and of additions."""
    ops = ["conv2d", "linear", "add"] if entering else ["conv2d", "linear"]
    rule = {"select": {"ops": ops}, "weight": weight} | ({"input": entering} if entering else {})
    return {"version": 1, "steps": [*steps, {"kind": "quantize", "rules": [rule]}], "tune": list(tune)}


def eight_bits() -> Iterator[Case]:
    """Yield W8A8 with either way to find the range of a weight."""
    for observer in ("minmax", "mse"):
        weight = {"bits": 8, "observer": observer}
        yield Case(f"W8A8, {observer}", policy(weight, {"bits": 8}, ["fold_batch_norm"]))


def four_bits() -> Iterator[Case]:
    """Yield W4A8, to the nearest and by reconstruction; the first convolution and the last layer have 8 bits."""
    tunings: dict[str, list[Any]] = {
        "nearest": [],
        "AdaRound": [{"ada_round": {"iterations": ITERATIONS}}],
        "block reconstruction": [{"block_reconstruction": {"iterations": ITERATIONS}}],
    }
    for name, tune in tunings.items():
        chosen = policy({"bits": 4, "observer": "mse"}, {"bits": 8}, ["fold_batch_norm"], tune)
        chosen["steps"][1]["rules"].append({"select": {"names": ["conv1", "linear"]}, "weight": {"bits": 8}})
        yield Case(f"W4A8, {name}", chosen)


def of_squeezenet() -> Iterator[Case]:
    """Yield codebooks of centroids, and even steps."""
    for bits in (8, 6, 5, 4):
        yield Case(f"codebook of {2**bits} centroids", policy({"bits": bits, "codebook": "kmeans", "per": "tensor"}))
    yield Case("W8", policy({"bits": 8}))
    yield Case("W8A8", policy({"bits": 8}, {"bits": 8}))


class Subject(NamedTuple):
    """A network, what measures it and, by seed, what calibrates it."""

    model: nn.Module
    test: TensorDataset
    data: Any


def resnet56(folder: Path, seed: int) -> Subject:
    """Return ResNet-56, all test images and some training images."""
    return Subject(
        cifar10.resnet(folder, 56), cifar10.test_set(folder), cifar10.training_subset(folder, IMAGES, seed)
    )


def resnet8(folder: Path, seed: int) -> Subject:
    """Return ResNet-8, all test images and some training images, as numbers from 0 to 255."""
    model = ResNet8()
    _load(model, folder / "resnet8_cifar10.safetensors")
    test, train = np.load(folder / "cifar10_test.npz"), np.load(folder / "cifar10_train_0.npz")
    chosen = np.random.default_rng(seed).choice(len(train["labels"]), IMAGES, replace=False)
    data = _images(cifar10.decoded(train["delta"])[chosen]).split(128)
    return Subject(model, TensorDataset(_images(test["images"]), torch.from_numpy(test["labels"]).long()), data)


def squeezenet(folder: Path, seed: int) -> Subject:
    """Return SqueezeNet as it was published, pruned and coded, the images that measure and those that calibrate."""
    model = SqueezeNet()
    _load(model, folder / "squeezenet1_0_deep_compression.safetensors")
    file = np.load(folder / "imagenet_sample_300.npz")
    images = _images(cifar10.decoded(file["delta"])) - torch.tensor([123.0, 117.0, 104.0]).view(3, 1, 1)
    order = np.random.default_rng(seed).permutation(len(images))
    known, unseen = order[:IMAGENET_IMAGES], order[IMAGENET_IMAGES:]
    test = TensorDataset(images[unseen], torch.from_numpy(file["labels"])[unseen].long())
    return Subject(model, test, images[known].split(20))


def _load(model: nn.Module, path: Path) -> None:
    """Load published weights; batch counters, which eval mode ignores, are not in them."""
    known = load_file(path)
    state = model.state_dict().items()
    model.load_state_dict({name: one if name.endswith("num_batches_tracked") else known[name] for name, one in state})
    model.eval()


def _images(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float()


NETWORKS = {
    "ResNet-56": (resnet56, [*eight_bits(), *four_bits()]),
    "ResNet-8": (resnet8, [*eight_bits()]),
    "SqueezeNet": (squeezenet, [*of_squeezenet()]),
}


def table(folder: Path, only: str, seeds: Sequence[int], images: int, cache: Path | None) -> Iterator[str]:
    """Yield a row for each network, way to quantize and seed, measured on the first `images` test images."""
    yield "| network | | seed | bytes | of float | float | quantized | rise, points |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|"
    for network, (make, cases) in NETWORKS.items():
        wanted = [case for case in cases if f"{network} {case.name}".startswith(only)]
        for seed in seeds if wanted else ():
            model, whole, data = make(folder, seed)
            test = TensorDataset(*whole[:images])
            before = cifar10.accuracy(model, test)
            for case in wanted:
                small = fxcompress.transform(model, case.policy, data=data, cache=cache)
                after, totals = cifar10.accuracy(small, test), fxcompress.report(small).record.totals
                sizes = f"{totals.size:,} | {totals.size / totals.float_size:.1%}"
                top1 = f"{before:.2%} | {after:.2%} | {100 * (after - before):+.2f}"
                yield f"| {network} | {case.name} | {seed} | {sizes} | {top1} |"


def kept(folder: Path) -> Iterator[str]:
    """Yield for each weight of SqueezeNet what a codebook of 256 centroids leaves of its zeros, and its error."""
    model, _, data = squeezenet(folder, 0)
    published = load_file(folder / "squeezenet1_0_deep_compression.safetensors")
    chosen = next(of_squeezenet())
    small = fxcompress.transform(model, chosen.policy, data=data)
    yield "| weight | zeros, published | still zero | different values | squared error of theirs | of ours |"
    yield "|---|---:|---:|---:|---:|---:|"
    for layer in layers(small):
        if layer.weight is not None:
            weight = published[f"{layer.name}.weight"]
            theirs = published[f"{layer.name}.codebook"][published[f"{layer.name}.code"].long()]
            ours = small.get_submodule(f"{layer.name}.weight_quantizer")(weight)
            zeros = weight == 0
            errors = [(found - weight).double().square().sum().item() for found in (theirs, ours)]
            counts = f"{zeros.sum():,} | {(zeros & (ours == 0)).sum():,} | {weight.unique().numel()}"
            yield f"| {layer.name} | {counts} | {errors[0]:g} | {errors[1]:g} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", default="", help="how network and row begin")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=10_000, help="how many test images measure")
    parser.add_argument("--cache", type=Path, help="where tuning keeps what it has done")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.machine()}, 1 thread, Python {platform.python_version()}, torch {torch.__version__}")
    print(f"CIFAR-10: the first {arguments.images:,} of 10,000 test images\n")
    for line in table(arguments.data, arguments.only, arguments.seeds, arguments.images, arguments.cache):
        print(line, flush=True)
    if "SqueezeNet".startswith(arguments.only):
        print("", *kept(arguments.data), sep="\n")


if __name__ == "__main__":
    main()
