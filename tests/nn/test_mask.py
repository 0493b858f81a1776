"""Mask: zeros where it says, in values and gradients."""

import torch

from fxcompress.nn import Mask


def test_sets_chosen_elements_to_zero():
    mask = Mask(torch.tensor([1, 0, 0, 1]))
    x = torch.tensor([1.0, 2.0, -3.0, 4.0], requires_grad=True)
    y = mask(x)
    y.sum().backward()
    assert y.tolist() == [1.0, 0.0, 0.0, 4.0]
    assert x.grad.tolist() == [1.0, 0.0, 0.0, 1.0]
    assert (mask.sparsity, repr(mask)) == (0.5, "Mask(50% zeros)")


def test_state_is_the_mask():
    mask = Mask(torch.tensor([True, False]))
    fresh = Mask(torch.ones(2))
    fresh.load_state_dict(mask.state_dict())
    assert fresh.mask.tolist() == [True, False]
    assert list(mask.state_dict()) == ["mask"]
