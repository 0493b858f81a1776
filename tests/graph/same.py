"""Models written in a line, and the comparison of a capture with its original."""

import copy

import torch
from torch import nn

from fxcompress.graph import capture


def model_of(forward, **parts):
    """Return a model with the given parts and forward."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            for name, part in parts.items():
                if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
                    self.register_buffer(name, part)
                else:
                    setattr(self, name, part)

    Model.forward = forward
    return Model().eval()


def same(original, example, others=(), **how):
    """Capture, and compare outputs, gradients and buffers on inputs that were not used for capture."""
    gm = capture(original, example, **how)
    for x in others or (torch.randn_like(example),):
        before = copy.deepcopy(original.state_dict())
        expected, found = original(x), gm(x)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        for module, result in ((original, expected), (gm, found)):
            if torch.is_tensor(result) and result.requires_grad:
                module.zero_grad()
                result.abs().sum().backward()
        gradients = {name: parameter.grad for name, parameter in gm.named_parameters()}
        for name, parameter in original.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=0, atol=0)
        state = gm.state_dict()
        assert state.keys() == before.keys()
        for name, value in original.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=0, atol=0)
    return gm
