"""Graphs by export, each compared with its original in both modes."""

import torch
from torch.utils import _pytree as pytree

from fxcompress.graph import capture, text

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))


def lines(gm):
    """Return the text of a graph without the check of sizes, which tracing does not need."""
    return [line for line in text(gm).splitlines() if not line.startswith("expect_sizes")]


def computed(module, x, training):
    """Return what a module computes with one random seed, and the gradients and buffers that it has then."""
    module.train(training).zero_grad()
    torch.manual_seed(0)
    results = [leaf for leaf in pytree.tree_leaves(module(x.clone())) if isinstance(leaf, torch.Tensor)]
    differentiable = [result.abs().sum() for result in results if result.requires_grad]
    if differentiable:
        torch.stack(differentiable).sum().backward()
    return results, {name: one.grad for name, one in module.named_parameters()}, dict(module.named_buffers())


def exported(model, example, others=(), modes=(False, True)):
    """Capture by export, and compare values, gradients and buffers in both modes, also on other inputs."""
    gm = capture(model.eval(), example, way="export")
    assert list(gm.state_dict()) == list(model.state_dict())
    for x in (example, *others):
        for training in modes:
            found, expected = (computed(module, x, training) for module in (gm, model))
            torch.testing.assert_close(found[:2], expected[:2], rtol=0, atol=0)
            for name, buffer in expected[2].items():
                torch.testing.assert_close(found[2][name], buffer, rtol=0, atol=0)
    return gm
