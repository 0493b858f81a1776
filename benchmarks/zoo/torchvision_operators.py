"""torchvision's compiled operators in plain PyTorch, for an installation whose compiled library does not load.

The wheels of the package index are built for CUDA; beside a torch without it they have no operators, and torchvision
does not even import. `declare` has to run before the first import of torchvision.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor",
)
_libraries: list[torch.library.Library] = []  # an operator lives as long as its library object


def declare() -> None:
    """Make torchvision importable and its detectors runnable, with its own operators where they load."""
    specification = importlib.util.find_spec("torchvision")
    if specification is None or specification.origin is None:
        raise ModuleNotFoundError("the zoo needs torchvision: run `make zoo`, which installs it into build/zoo")
    try:
        torch.ops.load_library(Path(specification.origin).parent / "_C.so")
    except OSError:
        _declare_ours()


def _declare_ours() -> None:
    library = torch.library.Library("torchvision", "DEF")
    _libraries.append(library)
    for schema in _SCHEMAS:
        library.define(schema)
    library.impl("nms", _nms, "CPU")

    import torchvision  # noqa: F401 - registers the shape of nms's result

    extension: Any = sys.modules["torchvision.extension"]
    align: Any = sys.modules["torchvision.ops.roi_align"]  # torchvision.ops.roi_align is the function
    library.impl("roi_align", align._roi_align.__wrapped__, "CPU")
    library.impl("roi_align", _roi_align_shape, "Meta")
    # torchvision looks for its compiled library before each call.
    align._has_ops = extension._has_ops = lambda: True


def _nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Return the kept boxes by falling score; a box is dropped if it overlaps a kept one by more than `threshold`."""
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes[order]
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    low = torch.maximum(boxes[:, None, :2], boxes[:, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[:, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    over = shared / (area[:, None] + area - shared) > threshold
    kept = torch.ones(len(boxes), dtype=torch.bool)
    for index in range(len(boxes)):
        if kept[index]:
            kept[index + 1 :] &= ~over[index, index + 1 :]
    return order[kept]


def _roi_align_shape(
    x: Tensor, rois: Tensor, spatial_scale: float, height: int, width: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    return x.new_empty((rois.shape[0], x.shape[1], height, width))
