"""Small architectures whose widths are arguments, so that a model without some channels can be built by hand."""

import torch
import torch.nn.functional as F
from torch import nn


class Chain(nn.Module):
    def __init__(self, a=6, b=5):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, a, 3), nn.BatchNorm2d(a), nn.Conv2d(a, b, 3, bias=False)
        self.head = nn.Linear(b * 4, 2)

    def forward(self, x):
        x = F.max_pool2d(self.second(F.gelu(self.norm(self.first(x)))), 2)
        return self.head(x.flatten(1))


class Residual(nn.Module):
    def __init__(self, a=6, b=4, c=5):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, a, 1), nn.BatchNorm2d(a)
        self.into, self.out, self.again = nn.Conv2d(a, b, 1), nn.Conv2d(b, a, 1), nn.Conv2d(a, a, 3, padding=1)
        self.act, self.last = nn.PReLU(a), nn.Conv2d(a, c, 1)

    def forward(self, x):
        x = self.act(self.norm(self.stem(x)))
        x = x + self.out(torch.relu(self.into(x)))
        x = self.again(self.again(x)) + x
        return self.last(x).mean((2, 3)).sum(1)


class MobileBlock(nn.Module):
    """Inverted residual with squeeze and excite."""

    def __init__(self, a=4, b=6, c=3):
        super().__init__()
        self.stem, self.expand, self.depth = (
            nn.Conv2d(3, a, 1),
            nn.Conv2d(a, b, 1),
            nn.Conv2d(b, b, 3, 1, 1, groups=b),
        )
        self.norm, self.squeeze, self.excite = nn.BatchNorm2d(b), nn.Linear(b, c), nn.Conv2d(c, b, 1)
        self.project, self.head = nn.Conv2d(b, a, 1), nn.Linear(a, 2)

    def forward(self, x):
        x = self.stem(x)
        y = F.hardswish(self.norm(self.depth(F.relu6(self.expand(x)))))
        gate = F.silu(self.squeeze(F.adaptive_avg_pool2d(y, 1).flatten(1)))
        y = y * F.hardsigmoid(self.excite(gate[:, :, None, None]))
        return self.head((x + self.project(y)).mean([2, 3]))


class Grouped(nn.Module):
    """Convolutions in groups, plain and transposed, with `size` channels in each."""

    def __init__(self, groups=4, size=2, made=2, transposed=2, last=3):
        super().__init__()
        self.groups = groups
        self.stem = nn.Conv2d(3, groups * size, 1)
        self.mix = nn.Conv2d(groups * size, groups * made, 3, groups=groups)
        self.up = nn.ConvTranspose2d(groups * made, groups * transposed, 2, groups=groups)
        self.down, self.head = nn.ConvTranspose2d(groups * transposed, last, 2), nn.Conv2d(last, 2, 1)

    def forward(self, x):
        return self.head(self.down(torch.tanh(self.up(self.mix(self.stem(x).relu())))).sigmoid())


class Dense(nn.Module):
    """Concatenation, splitting, a gated unit and padding with channels of zeros."""

    def __init__(self, a=4, b=3, c=5, pad=2):
        super().__init__()
        self.sizes, self.pad = [a, b], pad
        self.first, self.second = nn.Conv2d(3, a + b, 1), nn.Conv2d(a + b, 2 * c, 1)
        self.third, self.short = nn.Conv2d(a + b + c, a + pad, 1), nn.Conv2d(a + pad, 2, 1)

    def forward(self, x):
        x = self.first(x)
        left, right = torch.split(x, self.sizes, 1)
        value, gate = self.second(torch.relu(x)).chunk(2, 1)
        y = self.third(torch.cat([right, value * gate.sigmoid(), left], 1))
        return self.short(y + F.pad(left, (0, 0, 0, 0, 0, self.pad)))


class Shuffle(nn.Module):
    """A channel shuffle: a channel of the left goes with that of the right beside it."""

    def __init__(self, a=4, b=4):
        super().__init__()
        self.left, self.right, self.last = nn.Conv2d(3, a, 1), nn.Conv2d(3, b, 1), nn.Conv2d(a + b, 2, 1)

    def forward(self, x):
        x = torch.cat([self.left(x), self.right(x)], 1)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2)
        return self.last(x.reshape(batch, channels, height, width))


class Upscale(nn.Module):
    def __init__(self, a=3, b=4):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, a * 4, 1), nn.BatchNorm2d(a), nn.Conv2d(a, b, 1)
        self.third = nn.Conv2d(4 * b, 2, 1)

    def forward(self, x):
        x = self.second(F.relu(self.norm(F.pixel_shuffle(self.first(x), 2))))
        return self.third(F.pixel_unshuffle(F.interpolate(x, scale_factor=2), 2))


class SplitAttention(nn.Module):
    """Branches that are weighed against one another, channel by channel."""

    def __init__(self, a=5, b=3):
        super().__init__()
        self.first, self.squeeze, self.excite = nn.Conv2d(3, 2 * a, 1), nn.Conv2d(a, b, 1), nn.Conv2d(b, 2 * a, 1)
        self.last, self.a = nn.Conv2d(a, 2, 1), a

    def forward(self, x):
        x = self.first(x).unflatten(1, (2, self.a))
        gate = self.excite(F.relu(self.squeeze(x.sum(1).mean((2, 3), keepdim=True))))
        gate = F.softmax(gate.view(-1, 2, self.a), 1)[..., None, None]
        return self.last((x * gate).sum(dim=1))


class NeXt(nn.Module):
    """Channels last, layer norm, layer scale."""

    def __init__(self, a=6, b=5):
        super().__init__()
        self.stem, self.depth, self.norm = nn.Conv2d(3, a, 2, 2), nn.Conv2d(a, a, 3, 1, 1, groups=a), nn.LayerNorm(a)
        self.first, self.second, self.scale = nn.Linear(a, b), nn.Linear(b, a), nn.Parameter(torch.randn(a, 1, 1))
        self.head = nn.Linear(a, 2)

    def forward(self, x):
        x = self.stem(x)
        y = self.second(F.gelu(self.first(self.norm(self.depth(x).permute(0, 2, 3, 1)))))
        return self.head((x + self.scale * y.permute(0, 3, 1, 2)).mean((-2, -1)))


class GroupNormed(nn.Module):
    def __init__(self, groups=4, size=2):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, groups * size, 1), nn.GroupNorm(groups, groups * size)
        self.last = nn.Conv2d(groups * size, 2, 1)

    def forward(self, x):
        return self.last(F.silu(self.norm(self.first(x))))


class Packed(nn.Module):
    """Attention over tokens with queries, keys and values from one weight, and a position bias of each head."""

    def __init__(self, heads=3, size=4, width=8, hidden=6):
        super().__init__()
        self.heads, self.size = heads, size
        self.embed, self.position = nn.Linear(5, width), nn.Parameter(torch.randn(1, 8, width))
        self.cls = nn.Parameter(torch.randn(1, 1, width))
        self.bias = nn.Parameter(torch.randn(3, heads))
        self.qkv, self.out = nn.Linear(width, 3 * heads * size), nn.Linear(heads * size, width)
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.head = nn.Linear(width, 2)
        self.register_buffer("index", torch.arange(64) % 3)

    def forward(self, x):
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), self.embed(x)], 1) + self.position
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        weights = (q * self.size**-0.5) @ k.transpose(-2, -1)
        weights = weights + self.bias[self.index].view(tokens, tokens, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        y = (weights.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, -1)
        x = x + self.out(y)
        return self.head((x + self.down(F.gelu(self.up(self.norm(x)))))[:, 0])


class Decoder(nn.Module):
    """Grouped-query attention with rotary positions, norms of queries and keys, and a gated feed-forward."""

    def __init__(self, heads=3, width=8, hidden=6, per=2, size=4, kernel=False):
        super().__init__()
        self.shapes, self.per, self.kernel = ((heads, per, size), (heads, size)), per, kernel
        self.embed, self.norm = nn.Embedding(7, width), nn.RMSNorm(width)
        self.q, self.q_norm = nn.Linear(width, heads * per * size, bias=False), nn.LayerNorm(size)
        self.k, self.v = nn.Linear(width, heads * size, bias=False), nn.Linear(width, heads * size)
        self.out, self.gate = nn.Linear(heads * per * size, width), nn.Linear(width, hidden)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.head = nn.Linear(width, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("frequency", torch.linspace(0.5, 1, size // 2), persistent=False)
        self.register_buffer("places", torch.arange(4.0), persistent=False)
        self.register_buffer("later", torch.ones(4, 4).triu(1).bool(), persistent=False)

    def rotated(self, x):
        angle = torch.outer(self.places, self.frequency).repeat(1, 2)
        left, right = x.chunk(2, dim=-1)
        return x * angle.cos() + torch.cat((-right, left), dim=-1) * angle.sin()

    def forward(self, x):
        x = self.embed(x)
        y = self.norm(x)
        (heads, per, size), pairs = self.shapes
        batch, tokens, _ = y.shape
        q = self.rotated(self.q_norm(self.q(y).view(batch, tokens, heads * per, size)).transpose(1, 2))
        k = self.rotated(self.k(y).view(batch, tokens, *pairs).transpose(1, 2))
        v = self.v(y).view(batch, tokens, *pairs).transpose(1, 2)
        if self.kernel:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            k, v = (part[:, :, None].expand(batch, heads, per, tokens, size) for part in (k, v))
            k, v = (part.reshape(batch, heads * per, tokens, size) for part in (k, v))
            weights = torch.einsum("bhid, bhjd -> bhij", q, k) / size**0.5
            weights = weights.masked_fill(self.later, float("-inf"))
            y = torch.matmul(weights.softmax(dim=-1), v)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return self.head(x + self.down(F.silu(self.gate(x)) * self.up(x)))


class OneHead(nn.Module):
    """Attention without heads, on the places of an image; every matrix is a parameter of the model itself."""

    def __init__(self, a=5, b=4, c=3, by_size=False):
        super().__init__()
        self.by_size = by_size
        self.stem = nn.Conv2d(3, a, 4, 4)
        self.q, self.k = nn.Parameter(torch.randn(a, b)), nn.Parameter(torch.randn(b, a))
        self.v, self.v_bias, self.out = (nn.Parameter(torch.randn(shape)) for shape in ((a, c), (c,), (c, 2)))

    def forward(self, x):
        x = self.stem(x).flatten(2).mT
        q, k, v = x @ self.q, x @ self.k.t(), torch.addmm(self.v_bias, x.reshape(-1, x.shape[-1]), self.v)
        scale = q.shape[-1] ** 0.5 if self.by_size else 3
        weights = torch.bmm(q, k.transpose(1, 2)).div(scale).softmax(-1)
        return torch.matmul(weights, v.view(x.shape[0], x.shape[1], -1)) @ self.out


class Ratio(nn.Module):
    """A convolution that makes one channel from each group of three."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1, groups=2), nn.Conv2d(2, 2, 1)

    def forward(self, x):
        return self.last(self.conv(self.stem(x)))


class GroupsOfTwoKinds(nn.Module):
    """Channels that go one from each group reach a convolution of which whole groups would go."""

    def __init__(self):
        super().__init__()
        self.stem, self.first, self.second = (
            nn.Conv2d(3, 6, 1),
            nn.Conv2d(6, 4, 1, groups=2),
            nn.Conv2d(4, 4, 1, groups=2),
        )

    def forward(self, x):
        return self.second(self.first(self.stem(x)))


class NormOfTokens(nn.Module):
    """A batch norm over tokens, which shifts every channel of theirs."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(5, 4), nn.BatchNorm1d(7)

    def forward(self, x):
        x = self.norm(self.first(x))
        return x @ x.transpose(1, 2)


class OneHeadPacked(nn.Module):
    """Attention of one head, whose queries, keys and values are one tensor."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(5, 12), nn.Linear(4, 5)

    def forward(self, x):
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, 4).unbind(2)
        return self.out(F.softmax(q @ k.transpose(1, 2), -1) @ v)
