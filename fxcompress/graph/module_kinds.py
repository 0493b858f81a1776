"""Which modules a graph looks into, and which it calls as they are."""

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from fxcompress.nn import Choice, Mask, Quantizer

# Modules of torch whose forward is a plain function of their inputs and parameters: traced through, so that their
# weights become edges. All other modules of torch (batch norm, dropout, recurrent layers, ...) stay modules.
TRANSPARENT = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear),
    *(nn.Embedding, nn.LayerNorm, nn.GroupNorm, nn.Flatten, nn.Unflatten, nn.Identity),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh),
    *(nn.Sigmoid, nn.Tanh, nn.Softmax, nn.LogSoftmax, nn.Softplus, nn.Mish, nn.PReLU, nn.PixelShuffle, nn.Upsample),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d, nn.ZeroPad2d),
)
_KEPT = (_NormBase, _DropoutNd, Quantizer, Mask, Choice)  # whatever a subclass does in forward


def is_kept(module: nn.Module) -> bool:
    """Return whether a graph calls the module as it is, because it does something else in train mode."""
    return isinstance(module, _KEPT)


def is_opaque(module: nn.Module) -> bool:
    """Return whether symbolic tracing does not look into a module of torch: recurrent layers, attention, ..."""
    if isinstance(module, nn.Embedding) and module.max_norm is not None:  # changes its weight in forward
        return True
    if isinstance(module, (nn.Sequential, *TRANSPARENT, *_KEPT)) or type(module).forward is nn.Module.forward:
        return False
    return (type(module).forward.__module__ or "").startswith(("torch.nn", "torch.ao.nn"))
