"""Importing this makes `import torchvision` work, also where its compiled operators do not load (beside CPU-only torch).

Then nms is the plain greedy loop and RoIAlign torchvision's own Python fallback, run without torch.compile, with the one rule of its
compiled operator that it lacks: samples more than a pixel outside the map are 0. There is no RoI pooling and no deformable convolution.
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
    interpolate = fallback._bilinear_interpolate

    def inside(features, pictures, y, x, *masks):
        rows, columns = ((at >= -1) & (at <= length) for at, length in zip((y, x), features.shape[-2:]))
        found = interpolate(features, pictures, y, x, *masks)
        return found * rows[:, None, :, None, :, None] * columns[:, None, None, :, None, :]

    fallback._bilinear_interpolate = inside
