"""Optimal brain quantization in a fixed order, written plainly, and inputs for it."""

import numpy as np
import torch


def plain(weight, hessian, quantize, *, damping=0.01, order=None, begin=lambda column, weight: None):
    """Round column by column with the inverse Hessian of the columns that are left, renewed after each (OBQ)."""
    weight, hessian = weight.astype(np.float64), hessian.astype(np.float64)
    mean = np.diag(hessian).mean()
    hessian = hessian + (damping * mean if mean else 1.0) * np.eye(len(hessian))
    left = list(range(len(hessian)) if order is None else order)
    rounded = np.zeros_like(weight)
    while left:
        inverse = np.linalg.inv(hessian[np.ix_(left, left)])
        column = left[0]
        begin(column, weight)
        rounded[:, column] = quantize(weight[:, column], column)
        error = (weight[:, column] - rounded[:, column]) / inverse[0, 0]
        weight[:, left] -= np.outer(error, inverse[0])
        left = left[1:]
    return rounded


def nearest(scale, high=3):
    return lambda x, column: np.clip(np.round(x / scale), -high, high) * scale


def correlated(columns, count=200, seed=0):
    """Return inputs of shape (count, columns) that depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator)
    return torch.randn(count, columns, generator=generator) @ mix + 0.5
