"""Operators on channels that may tell them apart by place, with the units that can be removed."""

import torch
import torch.nn.functional as F
from torch import nn

ROWS, IMAGE = (2, 5, 4), (2, 3, 4, 6)


class Between(nn.Module):
    """Compute something between a layer of six channels and one that reads what has become of them.

    `left(start, stop)` counts how many of the six are left, for sizes that are written as numbers.
    """

    def __init__(self, between, x, gone=()):
        super().__init__()
        self.between, self.gone = between, gone
        self.shuffle, self.upscale, self.flat = nn.ChannelShuffle(3), nn.PixelShuffle(2), nn.Flatten(1, 2)
        self.softmin, self.softmax = nn.Softmin(-1), nn.Softmax2d()
        rows = x.dim() == 3
        self.register_buffer("some", torch.tensor([0, 2, 4, 5]))
        self.register_buffer("mask", torch.tensor([True, False, True, True, False, True]))
        self.first = nn.Linear(4, 6 - len(gone)) if rows else nn.Conv2d(3, 6 - len(gone), 1)
        read = between(self, self.first(x.float())).shape[-1 if rows else 1]
        self.last = nn.Linear(read, 2) if rows else nn.Conv2d(read, 2, 1)

    def left(self, start, stop):
        return stop - start - sum(start <= at < stop for at in self.gone)

    def forward(self, x):
        return self.last(self.between(self, self.first(x)))


def halves(self, y):
    a, b = y.chunk(2, -1)
    return torch.cat([b, a.relu()], -1)


def computed_halves(self, y):
    half = y.shape[-1] // 2
    return torch.cat([y[..., half:], y[..., :half].relu()], -1)


def narrowed_halves(self, y):
    half = y.shape[-1] // 2
    return torch.cat([y.narrow(-1, half, half), y.narrow(-1, 0, half).relu()], -1)


def counted(self, y):
    a, b = y.split([self.left(0, 2), self.left(2, 6)], -1)
    y = torch.cat([a.sin(), b], -1)
    return torch.cat([y[..., a.shape[-1] :], y[..., : a.shape[-1]] * 2], -1)


def sections(self, y):
    return torch.cat(y.split([self.left(0, 2), self.left(2, 6)], -1)[::-1], -1)


def shuffled_by_hand(self, y):
    y = y.view(2, 2, y.shape[1] // 2, 4, 6)
    return y.transpose(1, 2).flatten(1, 2)


def shuffled_by_size(self, y):
    return y.view(2, y.shape[1] // 2, 2, 4, 6).transpose(1, 2).flatten(1, 2)


def shuffled_by_many(self, y):
    return y.view(2, 3, y.shape[1] // 3, 4, 6).transpose(1, 2).flatten(1, 2)


def turned_pairs(y):
    return torch.cat([-y[..., 1::2], y[..., ::2]], -1)


SINGLE, HALVES, PAIRS = "0 1 2 3 4 5", "03 14 25", "01 23 45"
# what is computed of channels, the shape of the input, the units that can be removed exactly, why others stay
PATTERNS = {
    "every second": (lambda self, y: torch.cat([y[..., ::2], y[..., 1::2]], -1), ROWS, PAIRS, ""),
    "every third of them": (lambda self, y: y[..., 1::3], ROWS, "012 345", ""),
    "every second of some": (lambda self, y: y[..., 1:4:2], ROWS, "", "'getitem' takes one in 2 of a part"),
    "a part": (lambda self, y: y[..., self.left(0, 2) : self.left(0, 5)], ROWS, SINGLE, ""),
    "a part from the end": (lambda self, y: y[..., -self.left(2, 6) :], ROWS, SINGLE, ""),
    "a narrow part": (lambda self, y: y.narrow(-1, self.left(0, 2), self.left(2, 5)), ROWS, SINGLE, ""),
    "a narrow end": (lambda self, y: y.narrow(-1, -self.left(3, 6), self.left(3, 6)), ROWS, SINGLE, ""),
    "a list of them": (lambda self, y: y[..., [0, 2, 4, 5]], ROWS, "", "'getitem' picks it by index"),
    "a tensor of them": (lambda self, y: y[:, :, self.some], ROWS, "", "'getitem' picks it by index"),
    "a mask of them": (lambda self, y: y[:, :, self.mask], ROWS, "", "'getitem' picks it by index"),
    "a selection": (lambda self, y: y.index_select(-1, self.some), ROWS, "", "'index_select' picks it by index"),
    "rows by index": (lambda self, y: y[:, [0, 2]], ROWS, SINGLE, ""),
    "rows by tensor": (lambda self, y: y.index_select(1, self.some[:3]), ROWS, SINGLE, ""),
    "a shift": (lambda self, y: y.roll(1, -1), ROWS, "", "'roll' shifts it"),
    "a shift of all": (lambda self, y: y.roll(1), ROWS, "", "'roll' shifts it"),
    "a shift of rows": (lambda self, y: y.roll(1, 1), ROWS, SINGLE, ""),
    "the other way round": (lambda self, y: y.flip(-1), ROWS, SINGLE, ""),
    "turned": (lambda self, y: y.rot90(1, (1, 2)).mT, ROWS, SINGLE, ""),
    "below the diagonal": (lambda self, y: y.tril(), ROWS, "", "tril"),
    "above the diagonal": (lambda self, y: torch.triu(y), ROWS, "", "triu"),
    "sums up to each": (lambda self, y: y.cumsum(-1), ROWS, "", "cumsum"),
    "products up to each": (lambda self, y: y.cumprod(-1), ROWS, "", "cumprod"),
    "sorted": (lambda self, y: y.sort(-1)[0], ROWS, "", "sort"),
    "the largest": (lambda self, y: y.topk(2, -1)[0], ROWS, "", "topk"),
    "which is the largest": (lambda self, y: y * y.argmax(-1, keepdim=True), ROWS, "", ""),
    "differences": (lambda self, y: y.diff(dim=-1), ROWS, "", "diff"),
    "a diagonal": (lambda self, y: y.diagonal(0, 1, 2), ROWS, "", "'diagonal' takes the diagonal of it"),
    "a diagonal of rows": (lambda self, y: y.unflatten(1, (5, 1)).diagonal(0, 0, 1).mT, ROWS, SINGLE, ""),
    "each twice": (lambda self, y: y.repeat_interleave(2, -1), ROWS, SINGLE, ""),
    "all twice": (lambda self, y: y.repeat(1, 1, 2), ROWS, SINGLE, ""),
    "a Kronecker product": (lambda self, y: torch.kron(y, torch.ones(1, 1, 2).to(y)), ROWS, "", "kron"),
    "gathered": (
        lambda self, y: y.gather(-1, torch.zeros(2, 5, 3, dtype=torch.long)),
        ROWS,
        "",
        "gather",
    ),
    "scattered": (
        lambda self, y: y.scatter(-1, torch.zeros(2, 5, 1, dtype=torch.long), 1.0),
        ROWS,
        "",
        "scatter",
    ),
    "a margin": (lambda self, y: F.pad(y, (1, 2)), ROWS, SINGLE, ""),
    "a margin of ones": (lambda self, y: F.pad(y, (1, 2), value=1.0), ROWS, SINGLE, ""),
    "a margin that wraps": (lambda self, y: F.pad(y, (1, 2), mode="circular"), ROWS, "", "'pad' pads it"),
    "a norm of neighbours": (lambda self, y: F.local_response_norm(y, 3), IMAGE, "", ""),
    "halves": (halves, ROWS, HALVES, ""),
    "computed halves": (computed_halves, ROWS, HALVES, ""),
    "narrowed halves": (narrowed_halves, ROWS, HALVES, ""),
    "parts of one size": (
        lambda self, y: torch.cat(y.split(y.shape[-1] // 3, -1)[::-1], -1),
        ROWS,
        "024 135",
        "",
    ),
    "parts as large as a half of others": (
        lambda self, y: y.mT.flip(1).mT.split(torch.cat([y, y], -1).shape[-1] // 4, -1)[0],
        ROWS,
        "0235 14",
        "",
    ),
    "uneven parts": (lambda self, y: torch.cat(y.chunk(4, -1)[::-1], -1), ROWS, "024 135", ""),
    "parts with a rest": (
        lambda self, y: torch.cat(y.tensor_split(4, -1)[::-1], -1),
        ROWS,
        "",
        "'tensor_split' parts it unevenly",
    ),
    "three parts": (lambda self, y: torch.cat(y.tensor_split(3, -1)[::-1], -1), ROWS, "024 135", ""),
    "parts at places": (
        lambda self, y: torch.cat(y.tensor_split([self.left(0, 2), self.left(0, 4)], -1)[::-1], -1),
        ROWS,
        SINGLE,
        "",
    ),
    "columns": (lambda self, y: torch.cat(y.hsplit(2)[::-1], 1), IMAGE, HALVES, ""),
    "sections": (sections, ROWS, SINGLE, ""),
    "as many as another has": (counted, ROWS, SINGLE, ""),
    "gated": (lambda self, y: F.glu(y), ROWS, HALVES, ""),
    "shuffled": (lambda self, y: F.channel_shuffle(y, 2), IMAGE, HALVES, ""),
    "shuffled by a module": (lambda self, y: self.shuffle(y), IMAGE, "024 135", ""),
    "shuffled by hand": (shuffled_by_hand, IMAGE, HALVES, ""),
    "shuffled by size": (shuffled_by_size, IMAGE, PAIRS, ""),
    "shuffled by many": (shuffled_by_many, IMAGE, "024 135", ""),
    "a rest of sizes": (lambda self, y: y.unflatten(1, (2, -1)).flatten(1, 2), IMAGE, HALVES, ""),
    "a rest of sizes, flat": (lambda self, y: self.flat(y.unflatten(1, (2, -1))), IMAGE, HALVES, ""),
    "windows": (lambda self, y: y.unfold(-1, 2, 1).flatten(2), ROWS, "", "'unfold' puts it into windows"),
    "windows with a rest": (lambda self, y: y.unfold(-1, 4, 4)[:, :, 0], ROWS, "", "'unfold' puts it into windows"),
    "patches": (lambda self, y: F.unfold(y, 2).unflatten(2, (3, 5)), IMAGE, "", "im2col"),
    "a norm of them": (lambda self, y: F.normalize(y, dim=-1), ROWS, SINGLE, ""),
    "places of larger channels": (
        lambda self, y: F.pixel_shuffle(torch.cat([y, y], 1), 2),
        IMAGE,
        "",
        "",
    ),
    "places of a larger image, flat": (
        lambda self, y: self.upscale(y.repeat_interleave(2, 1)).flatten(1)[..., None, None],
        IMAGE,
        PAIRS,
        "",
    ),
    "channels of places": (lambda self, y: F.pixel_unshuffle(y, 2), IMAGE, SINGLE, ""),
    "channels of an axis of them": (
        lambda self, y: F.pixel_unshuffle(y.transpose(1, 3), 2),
        (2, 3, 4, 4),
        "",
        "'pixel_unshuffle' takes it apart",
    ),
    "the largest of all": (lambda self, y: y / (1 + y.norm(float("inf"), -1, keepdim=True)), ROWS, SINGLE, ""),
    "the smallest of all": (lambda self, y: F.normalize(y, -1.0, -1) * y, ROWS, "", ""),
    "every second of each": (
        lambda self, y: turned_pairs(y.unflatten(-1, (-1, 2))).flatten(2),
        ROWS,
        PAIRS,
        "",
    ),
    "a shift of each": (lambda self, y: y.unflatten(-1, (-1, 2)).roll(1, -1).flatten(2), ROWS, PAIRS, ""),
    "a list of each": (lambda self, y: y.unflatten(-1, (-1, 2))[..., [1, 0]].flatten(2), ROWS, PAIRS, ""),
    "a tensor of each": (
        lambda self, y: y.unflatten(-1, (-1, 2))[..., 1 - self.some[:2] // 2].flatten(2),
        ROWS,
        PAIRS,
        "",
    ),
    "half of each": (lambda self, y: y.unflatten(-1, (-1, 2)).chunk(2, -1)[1].flatten(2), ROWS, PAIRS, ""),
    "the last by size": (
        lambda self, y: y[..., y.shape[-1] - 1 :] * y,
        ROWS,
        "",
        "counts by how many there are",
    ),
    "all but some by size": (
        lambda self, y: y[..., : y.shape[-1] - 3],
        ROWS,
        "",
        "counts by how many there are",
    ),
    "the rest of a half": (lambda self, y: y[..., y.shape[-1] - y.shape[-1] // 2 :], ROWS, HALVES, ""),
    "half of each by size": (
        lambda self, y: computed_halves(self, y.unflatten(-1, (-1, 2))).flatten(2),
        ROWS,
        PAIRS,
        "",
    ),
    "the last": (lambda self, y: y[..., -1:] * y, ROWS, "0 1 2 3 4", "'getitem' takes it out alone"),
    "an axis more": (lambda self, y: y[None, ..., None, ::2][0, :, :, 0], ROWS, PAIRS, ""),
    "neighbours": (lambda self, y: y[..., 1:] - y[..., :-1], ROWS, "", "it is the whole"),
    "turned by hand": (
        lambda self, y: torch.cat([y[..., self.left(0, 2) :], y[..., : self.left(0, 2)]], -1),
        ROWS,
        SINGLE,
        "",
    ),
    "two by number": (lambda self, y: torch.cat(y.split(self.left(0, 6) // 2, -1)[::-1], -1), ROWS, HALVES, ""),
    "a number and a rest": (
        lambda self, y: torch.cat(y.split(4, -1)[::-1], -1),
        ROWS,
        "",
        "'split' parts it unevenly",
    ),
    "windows that part": (lambda self, y: y.unfold(-1, 2, 2).mT.flatten(2), ROWS, PAIRS, ""),
    "some more often": (
        lambda self, y: y.repeat_interleave(torch.tensor([1, 2, 1, 1, 1, 2]), -1),
        ROWS,
        "",
        "'repeat_interleave' picks it by index",
    ),
    "a larger axis": (lambda self, y: F.interpolate(y, scale_factor=2), ROWS, "", "mixes it with what lies around"),
    "the largest of two": (lambda self, y: F.max_pool1d(y, 2), ROWS, "", "mixes it with what lies around"),
    "numbered": (lambda self, y: y * torch.arange(y.shape[-1]), ROWS, "", "it meets the constant"),
    "set in relation": (lambda self, y: self.softmin(y), ROWS, "", ""),
    "rows set in relation": (lambda self, y: F.softmin(y, 1), ROWS, SINGLE, ""),
    "pixels set in relation": (lambda self, y: self.softmax(y), IMAGE, "", ""),
    "the middle one": (lambda self, y: y - y.median(-1, keepdim=True)[0], ROWS, "", "median"),
    "frequencies": (lambda self, y: torch.fft.fft(y).real, ROWS, "", "fft"),
    "copied by place": (lambda self, y: y.index_copy(-1, self.some, y[..., self.some] * 2), ROWS, "", ""),
    "filled by place": (lambda self, y: y.index_fill(-1, self.some, 1.0), ROWS, "", ""),
    "taken along": (lambda self, y: y.take_along_dim(self.some.view(1, 1, 4), -1), ROWS, "", ""),
    "unbound": (lambda self, y: torch.stack(y.unbind(-1)[::-1], -1), ROWS, "", "'unbind' takes it out alone"),
    "put in the place of every second": (
        lambda self, y: torch.slice_scatter(y, y[..., 1::2] * 2, -1, 0, 6, 2),
        ROWS,
        PAIRS,
        "",
    ),
}
