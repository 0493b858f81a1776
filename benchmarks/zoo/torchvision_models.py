"""torchvision's models: classification, segmentation, detection, video, optical flow, and their quantizable forms."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torchvision import models

from benchmarks.zoo.entries import Case, Entry, case, images

_PIXELS = 128
# Models that take one size only.
_FIXED = {"vit_b_16": 224, "vit_b_32": 224, "vit_h_14": 224, "vit_l_16": 224, "vit_l_32": 224, "maxvit_t": 224}
_VIDEO = {"mvit_v1_b": (16, 224), "mvit_v2_s": (16, 224), "s3d": (16, 224)}  # frames, pixels
_PROPOSALS = {"rpn_pre_nms_top_n_test": 200, "rpn_post_nms_top_n_test": 50}
_KEEP_SOME = {"detections_per_img": 20, "score_thresh": 0.0}  # random weights are sure of nothing


def entries() -> Iterator[Entry]:
    """Yield every model of torchvision."""
    for family, module, build in (
        ("classification", models, _classification),
        ("segmentation", models.segmentation, _segmentation),
        ("detection", models.detection, _detection),
        ("video", models.video, _video),
        ("optical flow", models.optical_flow, _optical_flow),
        ("quantizable", models.quantization, _classification),
    ):
        for name in models.list_models(module=module):
            yield Entry("torchvision", family, name, partial(build, name))


def _classification(name: str) -> Case:
    # Without `init_weights`, googlenet and inception warn that they draw their weights slowly.
    slow = {"init_weights": False} if "googlenet" in name or "inception" in name else {}
    model = models.get_model(name, weights=None, **slow)
    return case(model, images(_FIXED.get(name, _PIXELS)))


def _segmentation(name: str) -> Case:
    return case(models.get_model(name, weights=None, weights_backbone=None), images(_PIXELS))


def _detection(name: str) -> Case:
    options: dict[str, Any] = {"num_classes": 11}
    if not name.startswith("ssd"):  # whose size is fixed
        options |= {"min_size": 128, "max_size": 160}
    if "rcnn" in name:
        options |= _PROPOSALS | {f"box_{key}": value for key, value in _KEEP_SOME.items()}
    else:
        options |= _KEEP_SOME
    model = models.get_model(name, weights=None, weights_backbone=None, **options)
    return case(model, lambda batch: ([torch.rand(3, 128, 128 + 16 * index) for index in range(batch)],))


def _video(name: str) -> Case:
    frames, pixels = _VIDEO.get(name, (8, 64))
    model = models.get_model(name, weights=None)
    return case(model, lambda batch: torch.randn(batch, 3, frames, pixels, pixels), batch=1)


def _optical_flow(name: str) -> Case:
    model = models.get_model(name, weights=None)
    return case(model, lambda batch: (torch.randn(batch, 3, 128, 128), torch.randn(batch, 3, 128, 128)))
