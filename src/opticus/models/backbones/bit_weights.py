"""Published BiT checkpoints. Every URL and figure is copied from the source that its row names."""

from __future__ import annotations

from dataclasses import replace

from opticus.structures import Prepare, Weights

HALF = (0.5, 0.5, 0.5)
# BiT-HyperRule: pictures of at least 96x96 pixels are squeezed to 480x480 (bit_hyperrule.py, bit_pytorch/train.py)
PREPARE = Prepare(resize="fixed", size=(480, 480), mean=HALF, std=HALF)
# not fine-tuned: the resolution of the pre-training (timm's rule for the same files)
_AT_224 = replace(PREPARE, resize="shortest", size=(256, 0), crop=(224, 224))
_DISTILLED = replace(_AT_224, interpolation="bicubic")

README = "https://github.com/google-research/big_transfer README.md"
TIMM = f"{README}; preprocessing from timm 1.0.31 models/resnetv2.py"
SIZES = ("50x1", "50x3", "101x1", "101x3", "152x2", "152x4")


def _google(file: str, source: str, prepare: Prepare, classes: int | None = None, top1: float | None = None) -> Weights:
    return Weights(
        url=f"https://storage.googleapis.com/bit_models/{file}.npz",
        format="google",
        license="Apache-2.0",
        source=source,
        prepare=prepare,
        labels=None if classes else "imagenet1k",
        classes=classes,
        reports={} if top1 is None else {"imagenet1k acc@1": top1},
    )


WEIGHTS: dict[str, Weights] = {
    **{f"{size}:m_in1k": _google(f"BiT-M-R{size}-ILSVRC2012", README, PREPARE) for size in SIZES},
    **{f"{size}:m": _google(f"BiT-M-R{size}", TIMM, _AT_224, 21843) for size in SIZES},
    **{f"{size}:s": _google(f"BiT-S-R{size}", TIMM, _AT_224) for size in SIZES},
    "50x1:distilled": _google("distill/R50x1_224", TIMM, _DISTILLED, top1=82.8),
    "152x2:teacher_224": _google("distill/R152x2_T_224", TIMM, _DISTILLED),
    "152x2:teacher_384": _google("distill/R152x2_T_384", TIMM, replace(_DISTILLED, size=(384, 0), crop=(384, 384))),
}
PARAMETERS: dict[str, int] = {
    "50x1": 25549352,
    "50x3": 217319080,
    "101x1": 44541480,
    "101x3": 387934888,
    "152x2": 236335208,
    "152x4": 936533224,
}
