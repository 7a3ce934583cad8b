"""Lets torchvision's Python import beside a CPU build of torch its binary was not made for; defines two operator names.

Only for the separate environment in which the real `lerobot` runs: nothing of the package imports this.
"""

import torch

LIBRARY = torch.library.Library("torchvision", "DEF")
LIBRARY.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
LIBRARY.define(
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
