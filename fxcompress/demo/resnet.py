"""The residual network for CIFAR-sized images (He et al. 2016, section 4.2), with parameter-free shortcuts."""

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Add two 3x3 convolutions to their input.

    Where the width changes, the input is subsampled and its channels padded with zeros on both sides (option A).
    """

    def __init__(self, planes_in: int, planes: int) -> None:
        super().__init__()
        self.stride = 1 if planes_in == planes else 2
        self.padding = (planes - planes_in) // 2
        self.conv1 = nn.Conv2d(planes_in, planes, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.padding:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(y + x)


class ResNet(nn.Module):
    """Classify images of shape (N, in_channels, H, W) with `depth` weighted layers; returns logits (N, classes).

    Three groups of (depth - 2) / 6 blocks, 16, 32 and 64 channels wide (He et al. 2016, section 4.2).
    Raises ValueError where `depth` is not 6n + 2.
    """

    def __init__(self, depth: int = 20, in_channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth is 6n + 2 (8, 14, 20, 32, 44, 56, 110), not {depth}")
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _group(blocks, 16, 16)
        self.layer2 = _group(blocks, 16, 32)
        self.layer3 = _group(blocks, 32, 64)
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _group(blocks: int, planes_in: int, planes: int) -> nn.Sequential:
    return nn.Sequential(Block(planes_in, planes), *(Block(planes, planes) for _ in range(blocks - 1)))
