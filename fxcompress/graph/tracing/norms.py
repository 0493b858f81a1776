"""Batch norm inside a module that computes more: a plain batch norm in its place."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def is_plain(module: nn.Module) -> bool:
    """Return whether a module computes what the batch norm of torch does, and nothing more."""
    return type(module).forward in {kind.forward for kind in _PLAIN}


def plain_norm(module: _BatchNorm, axes: int) -> _BatchNorm:
    """Return a batch norm of torch with the parameters, buffers, children and mode of a module that computes more.

    `axes` is the number of axes of its input, where the module's class does not tell.
    """
    by_axes = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[axes]
    kind = next((kind for kind in _PLAIN if isinstance(module, kind)), by_axes)
    plain = kind(module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
    plain._parameters, plain._buffers, plain._modules = module._parameters, module._buffers, module._modules
    plain.training = module.training
    return plain
