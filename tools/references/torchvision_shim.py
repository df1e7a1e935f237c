"""Importing this makes `import torchvision` work, also where its compiled operators do not load (beside CPU-only torch).

Then nms is the plain greedy loop and RoIAlign torchvision's own Python fallback, run without torch.compile; that one is not its
compiled rule for RoIs that reach more than a pixel outside the map. There is no RoI pooling and no deformable convolution.
"""

import sys

import torch

try:
    import torchvision.ops
except (RuntimeError, ImportError):  # "operator torchvision::nms does not exist"
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")  # an operator lives as long as its library object
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision.ops

    @torch.library.impl(library, "nms", "CPU")
    def nms(dets: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
        keep, order = [], scores.argsort(descending=True, stable=True)
        while len(order):
            keep.append(order[0])
            order = order[1:][torchvision.ops.box_iou(dets[order[:1]], dets[order[1:]])[0] <= iou_threshold]
        return torch.stack(keep) if keep else order

    torchvision.ops.boxes._assert_has_ops = lambda: None
    fallback = sys.modules["torchvision.ops.roi_align"]
    fallback._roi_align = fallback._roi_align.__wrapped__
