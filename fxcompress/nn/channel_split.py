"""The ChannelSplit: writes outliers of a weight as sums of parts, in input channels that are computed twice."""

import torch
from torch import Tensor, nn


class ChannelSplit(nn.Module):
    """Widen a weight by input channels that take over parts of others (Zhao et al. 2019, arXiv:1901.09504).

    `added` holds for each new channel the one whose input it reads (n,). `share` and `offset`, in the shape of the
    new channels of the weight, say that it takes share * w + offset * step; the channel it reads keeps the rest, so
    that the layer computes the same for every `step`. With the quantizer's step the parts are rounded to codes that
    add up to the code of the whole (section 3.3); it is 0, and the parts plain halves, until `set_step`. `axis` holds
    the input channels.
    """

    added: Tensor
    share: Tensor
    offset: Tensor
    step: Tensor

    def __init__(self, added: Tensor, share: Tensor, offset: Tensor, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("added", added)
        self.register_buffer("share", share)
        self.register_buffer("offset", offset)
        self.register_buffer("step", share.new_zeros(share.shape[1 - axis]))

    @torch.no_grad()
    def set_step(self, scale: Tensor) -> None:
        """Set the step of the grid on which parts will be rounded: one for all, or one for each output channel."""
        self.step.copy_(scale)

    def forward(self, weight: Tensor) -> Tensor:
        shape = [1] * weight.dim()
        shape[1 - self.axis] = -1
        share, shift = self.share.to(weight.dtype), (self.offset * self.step.view(shape)).to(weight.dtype)
        kept = torch.ones_like(weight).index_add(self.axis, self.added, share, alpha=-1)  # exact: powers of two
        rest = (weight * kept).index_add(self.axis, self.added, shift, alpha=-1)
        return torch.cat([rest, weight.index_select(self.axis, self.added) * share + shift], dim=self.axis)

    def extra_repr(self) -> str:
        return f"{len(self.added)} channels added"


@torch.no_grad()
def split_outliers(weight: Tensor, count: int, axis: int) -> ChannelSplit:
    """Return the ChannelSplit that adds `count` input channels to a weight, which lie on `axis`.

    One after the other, the channel with the largest magnitude, new ones included, is split: what exceeds half of
    that magnitude is halved, anything smaller stays whole where it is (Zhao et al. 2019, section 3.2).
    """
    values = weight.detach().movedim(axis, 0).abs()
    channels = len(values)
    source = torch.cat([torch.arange(channels), torch.zeros(count, dtype=torch.int64)]).to(weight.device)
    share = torch.cat([torch.ones_like(values), values.new_zeros(count, *values.shape[1:])])
    offset = torch.zeros_like(share)
    largest = torch.cat([values.flatten(1).amax(1), values.new_full((count,), -1.0)])
    steps = 0 if weight.is_meta else count  # without values there is nothing to choose by
    for new in range(channels, channels + steps):  # each split depends on those before
        old = largest.argmax()
        part = values[source[old]] * share[old]
        halved = part > largest[old] / 2
        source[new] = source[old]
        share[new] = torch.where(halved, share[old] / 2, 0.0)
        share[old] -= share[new]
        # parts (w - step / 2) / 2 and (w + step / 2) / 2 round to what w rounds to, whatever w
        offset[new] = torch.where(halved, offset[old] / 2 + 0.25, 0.0)
        offset[old] -= offset[new]
        for one in (old, new):
            largest[one] = (values[source[old]] * share[one]).max()
    added = slice(channels, None)
    return ChannelSplit(source[added], share[added].movedim(0, axis), offset[added].movedim(0, axis), axis)


def copied_channels(x: Tensor, added: Tensor, axis: int) -> Tensor:
    """Return `x` with the channels `added`, which lie on `axis`, once more at the end."""
    return torch.cat([x, x.index_select(axis, added)], dim=axis)
