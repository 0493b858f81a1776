"""Level tables: the values that codebooks hold, fixed by a rule or fitted to numbers."""

import torch
from torch import Tensor


def apot(bits: int) -> Tensor:
    """Return the 2^bits - 1 levels of additive powers of two from -1 to 1, ascending, in float64 (Li et al. 2020).

    One bit is the sign. Each two of the B = bits - 1 others choose a term of their own: zero or one of three powers
    of two, 2^-(i + 1 + j n) for term i of n = B // 2; the magnitude is the sum of the terms. Where B is odd, its last
    bit chooses a term of zero or 2^-(2 n + 1), and the third powers (j = 2) move down by one place for it. So every
    power is there once, and 2 bits are uniform.
    """
    terms, odd = divmod(bits - 1, 2)
    chosen = [[0.0, *(2.0 ** -(i + 1 + j * terms + (odd if j == 2 else 0)) for j in range(3))] for i in range(terms)]
    if odd:
        chosen.append([0.0, 2.0 ** -(2 * terms + 1)])
    sums = torch.zeros(1, dtype=torch.float64)
    for term in chosen:
        sums = (sums.unsqueeze(1) + torch.tensor(term, dtype=torch.float64)).flatten()
    magnitudes = sums.sort().values / sums.max()
    return torch.cat([-magnitudes[1:].flip(0), magnitudes])


def kmeans(values: Tensor, count: int) -> Tensor:
    """Return `count` levels for some values, ascending, in float64, by Lloyd's iteration to convergence.

    Levels start evenly between the least and the greatest value (Han et al. 2016, Deep Compression, section 3.2);
    one that has no values stays where it is. Where zero is among the values, one level is zero and stays it. At most
    `count` different values are levels themselves, the greatest as often as needed. Sums over the sorted values come
    from their prefix sums, so that an iteration takes O(count log n).
    """
    ordered = values.flatten().double().sort().values
    distinct = ordered.unique_consecutive()
    if distinct.numel() <= count:
        last = distinct[-1:] if distinct.numel() else ordered.new_zeros(1)
        return torch.cat([distinct, last.expand(count - distinct.numel())])
    levels = torch.lerp(
        ordered[0], ordered[-1], torch.linspace(0, 1, count, dtype=ordered.dtype, device=ordered.device)
    )
    pinned = levels.abs().argmin() if (distinct == 0).any() else None
    if pinned is not None:
        levels[pinned] = 0.0
    start = torch.zeros(1, dtype=ordered.dtype, device=ordered.device)
    prefix = torch.cat([start, ordered.cumsum(0)])
    ends = torch.tensor([0, ordered.numel()], device=ordered.device)
    cuts, explained = ends[:0], -torch.inf
    while True:
        before, cuts = cuts, torch.searchsorted(ordered, midpoints(levels))
        edges = torch.cat([ends[:1], cuts, ends[1:]])
        held, sums = edges.diff(), prefix[edges].diff()
        means = torch.where(held > 0, sums / held, levels)
        if pinned is not None:
            means[pinned] = 0.0
        gained = (2 * means * sums - held * means.square()).sum().item()  # the squared error falls by what this rises
        if torch.equal(cuts, before) or gained <= explained:  # the second where only rounding is left
            return levels
        levels, explained = means, gained


def midpoints(levels: Tensor) -> Tensor:
    """Return the middle between each two neighbours."""
    return (levels[1:] + levels[:-1]) / 2
