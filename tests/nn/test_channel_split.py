"""ChannelSplit: parts add up to the weight, and their codes to its code; chosen as a plain loop in numpy chooses."""

import numpy as np
import pytest
import torch
from torch import nn

from fxcompress.nn.channel_split import ChannelSplit, copied_channels, split_outliers


def weights(shape, seed=0, dtype=torch.float32):
    """Return weights with outliers in a few input channels."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.exp(torch.randn(shape[1], generator=generator)).view(1, -1, *[1] * (len(shape) - 2))
    return (torch.randn(shape, generator=generator) * spread).to(dtype)


def plain_split(weight, count):
    """Split the input channels of a weight (out, in, ...) one by one; return it widened, and what is read."""
    columns = [weight[:, channel].astype(np.float64) for channel in range(weight.shape[1])]
    reads = list(range(weight.shape[1]))
    for _ in range(count):
        old = int(np.argmax([np.abs(column).max() for column in columns]))
        big = np.abs(columns[old]) > np.abs(columns[old]).max() / 2
        half = np.where(big, columns[old] / 2, 0)
        columns[old] = columns[old] - half
        columns.append(half)
        reads.append(reads[old])
    return np.stack(columns, 1), reads


@pytest.mark.parametrize("shape", [(4, 6), (5, 3, 3, 3), (2, 8, 4)])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_what_is_split(shape, count):
    weight = weights(shape)
    split = split_outliers(weight, count, axis=1)
    wide, reads = plain_split(weight.numpy(), count)
    np.testing.assert_array_equal(split(weight).numpy(), wide.astype(np.float32))
    assert [*range(shape[1]), *split.added.tolist()] == reads
    assert split(weight).abs().max() < weight.abs().max()


def test_by_hand():
    weight = torch.tensor([[1.0, 8.0, -1.0], [0.0, 3.0, 0.5]])
    split = split_outliers(weight, 2, axis=1)
    # 8 becomes 4 + 4, 3 stays whole; then the first 4 of both becomes 2 + 2, and 3 > 2 becomes 1.5 + 1.5
    assert split(weight).tolist() == [[1.0, 2.0, -1.0, 4.0, 2.0], [0.0, 1.5, 0.5, 0.0, 1.5]]
    assert split.added.tolist() == [1, 1]


@pytest.mark.parametrize("step", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("axis", [0, 1])
def test_parts_add_up_to_the_weight(step, axis):
    weight = weights((6, 7, 3), dtype=torch.float64)
    split = split_outliers(weight, 9, axis).double()
    split.set_step(torch.tensor(step))
    wide = split(weight)
    whole = wide.narrow(axis, 0, weight.shape[axis]).clone()
    whole.index_add_(axis, split.added, wide.narrow(axis, weight.shape[axis], 9))
    torch.testing.assert_close(whole, weight, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 5, 12])
@pytest.mark.parametrize("per_channel", [True, False])
def test_codes_of_parts_add_up_to_the_code_of_the_whole(count, per_channel):
    weight = weights((8, 6, 9), seed=count, dtype=torch.float64)
    split = split_outliers(weight, count, axis=1).double()
    step = torch.linspace(0.05, 0.2, 8, dtype=torch.float64) if per_channel else torch.tensor(0.1).double()
    split.set_step(step)
    steps = step.view(-1, 1, 1)
    codes = np.rint((split(weight) / steps).numpy())
    whole = codes[:, :6].copy()
    for place, channel in enumerate(split.added.tolist()):
        whole[:, channel] += codes[:, 6 + place]
    np.testing.assert_array_equal(whole, np.rint((weight / steps).numpy()))
    split.set_step(torch.tensor(0.0))
    halves = np.rint((split(weight) / steps).numpy())
    for place, channel in enumerate(split.added.tolist()):
        halves[:, channel] += halves[:, 6 + place]
    assert not np.array_equal(halves[:, :6], whole)  # plain halves do not


def test_the_function_of_a_layer_stays():
    weight, x = weights((4, 5, 3, 3), dtype=torch.float64), torch.randn(2, 5, 6, 6, dtype=torch.float64)
    split = split_outliers(weight, 3, axis=1).double()
    wide = nn.functional.conv2d(copied_channels(x, split.added, -3), split(weight))
    torch.testing.assert_close(wide, nn.functional.conv2d(x, weight), rtol=1e-12, atol=1e-12)


def test_gradients_reach_the_weight_as_without_it():
    weight, x = weights((4, 5)).requires_grad_(), torch.randn(7, 5)
    split = split_outliers(weight, 3, axis=1)
    nn.functional.linear(copied_channels(x, split.added, -1), split(weight)).square().sum().backward()
    wanted = weight.detach().clone().requires_grad_()
    nn.functional.linear(x, wanted).square().sum().backward()
    torch.testing.assert_close(weight.grad, wanted.grad, rtol=1e-4, atol=1e-4)


def test_state():
    split = split_outliers(weights((4, 5)), 2, axis=1)
    split.set_step(torch.arange(4.0))
    other = split_outliers(torch.ones(4, 5), 2, axis=1)
    other.load_state_dict(split.state_dict())
    assert torch.equal(other(weights((4, 5))), split(weights((4, 5))))
    assert repr(split) == "ChannelSplit(2 channels added)"


def test_half_precision_and_a_model_without_values():
    weight = weights((4, 5)).half()
    assert split_outliers(weight, 2, axis=1)(weight).dtype == torch.float16
    meta = torch.empty(4, 5, device="meta")
    split = split_outliers(meta, 2, axis=1)
    assert isinstance(split, ChannelSplit)
    assert split(meta).shape == (4, 7)
