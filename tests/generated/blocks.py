"""Modules of modules that generated models are built from; their source is part of a generated model's source."""

import torch
import torch.nn.functional as F
from torch import nn


class Residual(nn.Module):
    """Add what a body computes to its input."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return x + self.body(x)


class Stack(nn.Module):
    """Run modules one after another, and add what all of them computed."""

    def __init__(self, *modules):
        super().__init__()
        self.layers = nn.ModuleList(modules)

    def forward(self, x):
        total = 0
        for layer in self.layers:
            x = layer(x)
            total = total + x
        return total


class Gate(nn.Module):
    """Scale channels by what their means say (squeeze and excite)."""

    def __init__(self, channels, hidden):
        super().__init__()
        self.squeeze = nn.Conv2d(channels, hidden, 1)
        self.excite = nn.Conv2d(hidden, channels, 1)

    def forward(self, x):
        means = F.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.excite(F.relu(self.squeeze(means))))


class Attention(nn.Module):
    """Let tokens attend to one another in several heads."""

    def __init__(self, channels, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x):
        batch, tokens, channels = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = F.softmax(q @ k.transpose(-2, -1) * (channels // self.heads) ** -0.5, dim=-1)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, tokens, channels))


class Branch(nn.Module):
    """Run a body or not, as the values say: only the model's own Python can."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        if x.mean() > 0:
            return self.body(x)
        return x


BLOCKS = {block.__name__: block for block in (Residual, Stack, Gate, Attention, Branch)}
