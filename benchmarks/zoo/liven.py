"""Random weights under which a difference anywhere in a model reaches its outputs.

As they are built, many models compute next to nothing: batch norms hold the statistics of no data, so that
activations vanish with depth; biases, layer scales and last layers are constant. A wrong graph of such a model would
pass.
"""

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo.forward import run

_JITTER = 0.1  # added to parameters that are constant
_NOTHING, _LITTLE = 1e-12, 0.1  # deviations between which an output is scaled to 1
_SCALED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)
_CODEBOOKS = ("embed", "embed_sum")  # buffers of zeros, until they are trained


@torch.no_grad()
def liven(model: nn.Module, inputs: Any) -> None:
    """Jitter constant parameters, then set batch norms and scale layers by one pass over `inputs`.

    The pass is the data-dependent initialization of Salimans and Kingma, "Weight normalization" (2016), section 3.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.numel() and parameter.min() == parameter.max():
            parameter.add_(_JITTER * torch.randn_like(parameter))
    for name, buffer in model.named_buffers():
        if name.rpartition(".")[2] in _CODEBOOKS and buffer.is_floating_point():
            buffer.normal_(std=_JITTER)
    handles = []
    for module in model.modules():
        if isinstance(getattr(module, "running_mean", None), Tensor):
            handles.append(module.register_forward_pre_hook(_set_statistics))
        elif isinstance(module, _SCALED) and "weight" in module._parameters:
            handles.append(module.register_forward_hook(_scale))
    run(model, inputs)
    for handle in handles:
        handle.remove()


def _set_statistics(module: nn.Module, args: tuple[Tensor, ...]) -> None:
    x = args[0]
    others = [axis for axis in range(x.dim()) if axis != 1]
    module.get_buffer("running_mean").copy_(x.mean(others))
    module.get_buffer("running_var").copy_(x.var(others, correction=0).clamp(min=1e-4))


def _scale(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
    """Center and scale an output that hardly varies over samples and positions."""
    if not isinstance(output, Tensor) or output.numel() < 2:
        return None
    weight, bias = module.get_parameter("weight"), module._parameters.get("bias")
    channels = output.movedim(1 - weight.dim(), -1).flatten(0, -2)
    mean = channels.mean(0)
    deviation = (channels - mean).std().item()
    if not _NOTHING < deviation < _LITTLE:
        return None
    weight.div_(deviation)
    if bias is not None:
        bias.copy_((bias - mean) / deviation)
    return module.forward(*args)
