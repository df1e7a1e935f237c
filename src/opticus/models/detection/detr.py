"""End-to-End Object Detection with Transformers.

Carion, Massa, Synnaeve, Usunier, Kirillov and Zagoruyko, ECCV 2020, arXiv 2005.12872 (DETR).
Reference: github.com/facebookresearch/detr (Apache-2.0).

*Differs*: the class loss is divided by the weight of all processes' queries (the authors' by each process's own); a recipe, not the
network, freezes the backbone's first layers; results are clipped to the picture; "tiny" is a small configuration for the demo data.
*Map*: eq. 1 -> `matching.hungarian`; eq. 2 -> `SetCriterion`; section 3.2 and figure 10 -> `Transformer`, `EncoderLayer`,
`DecoderLayer`; "prediction feed-forward networks" -> `class_embed`, `bbox_embed`; appendix A.4 -> `layers.positions`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from opticus.layers.mlp import MLP
from opticus.layers.positions import SinePositions
from opticus.losses.boxes import box_l1, giou_loss, object_count
from opticus.losses.supervised import Supervised
from opticus.matching.detections import windows
from opticus.matching.hungarian import assign, detection_cost
from opticus.matching.objects import Objects, objects_of
from opticus.ops.boxes import clip, cxcywh_to_xyxy, map_boxes, xyxy_to_cxcywh
from opticus.ops.collectives import all_reduce
from opticus.structures import Backbone, Batch, DataError, Images, Instances, Part, Prepare, Result, Task, Weights
from opticus.weights.names import Names, join, keep, rename

TASK: Task = "detect"
PREPARE = Prepare(resize="shortest", size=(800, 1333))
_R50 = Part("resnet/50", classes=0, norm="frozen")


@dataclass(frozen=True)
class Config:
    """`classes` leaves out the no-object class; `side` is the shorter side of inputs in pixels (the longer one at most 5/3 of it)."""

    classes: int = 91
    backbone: Part = _R50
    width: int = 256
    heads: int = 8
    encoder: int = 6
    decoder: int = 6
    hidden: int = 2048
    queries: int = 100
    dropout: float = 0.1
    side: int = 800


# --- network -----------------------------------------------------------------------------------------------------------


class Answers(NamedTuple):
    """One answer per query: `logits` (B,Q,K+1), no object last, and `boxes` (B,Q,4), cxcywh in fractions of the unpadded input.

    In training `auxiliary_logits` (L-1,B,Q,K+1) and `auxiliary_boxes` (L-1,B,Q,4) are those of the lower decoder layers.
    """

    logits: Tensor
    boxes: Tensor
    auxiliary_logits: Tensor | None = None
    auxiliary_boxes: Tensor | None = None


class Attention(nn.Module):
    """Multi-head attention (appendix A.1) whose query and key carry positions and whose value does not."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.zeros_(self.out_proj.get_parameter("bias"))

    def forward(
        self, query: Float[Tensor, "B Q D"], key: Float[Tensor, "B S D"], value: Float[Tensor, "B S D"], mask: Tensor | None
    ) -> Float[Tensor, "B Q D"]:
        width = self.out_proj.in_features
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if query is key:
            q, k = F.linear(query, weight[: 2 * width], bias[: 2 * width]).chunk(2, -1)
        else:
            q = F.linear(query, weight[:width], bias[:width])
            k = F.linear(key, weight[width : 2 * width], bias[width : 2 * width])
        v = F.linear(value, weight[2 * width :], bias[2 * width :])
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        drop = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, mask, drop)
        return self.out_proj(x.transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """Self-attention and a ReLU feed-forward network, each followed by dropout, sum and layer norm (figure 10 left)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.self_attn = Attention(config.width, config.heads, config.dropout)
        self.linear1 = nn.Linear(config.width, config.hidden)
        self.linear2 = nn.Linear(config.hidden, config.width)
        self.norm1 = nn.LayerNorm(config.width)
        self.norm2 = nn.LayerNorm(config.width)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        placed = x + positions
        x = self.norm1(x + self.drop(self.self_attn(placed, placed, x, mask)))
        return self.norm2(x + self.drop(self.linear2(self.drop(F.relu(self.linear1(x))))))


class DecoderLayer(nn.Module):
    """Self-attention of the queries, attention to the picture, feed-forward network (figure 10 right)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.self_attn = Attention(config.width, config.heads, config.dropout)
        self.multihead_attn = Attention(config.width, config.heads, config.dropout)
        self.linear1 = nn.Linear(config.width, config.hidden)
        self.linear2 = nn.Linear(config.hidden, config.width)
        self.norm1 = nn.LayerNorm(config.width)
        self.norm2 = nn.LayerNorm(config.width)
        self.norm3 = nn.LayerNorm(config.width)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, queries: Tensor, memory: Tensor, placed_memory: Tensor, mask: Tensor | None) -> Tensor:
        placed = x + queries
        x = self.norm1(x + self.drop(self.self_attn(placed, placed, x, None)))
        x = self.norm2(x + self.drop(self.multihead_attn(x + queries, placed_memory, memory, mask)))
        return self.norm3(x + self.drop(self.linear2(self.drop(F.relu(self.linear1(x))))))


class Encoder(nn.Module):
    """A stack of encoder layers; positions are added again in each."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder))

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        for layer in self.layers:
            x = layer(x, positions, mask)
        return x


class Decoder(nn.Module):
    """A stack of decoder layers under one final norm; returns the layers' normed states, all in training, else the last."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, queries: Tensor, memory: Tensor, positions: Tensor, mask: Tensor | None) -> Float[Tensor, "L B Q D"]:
        placed = memory + positions
        x = torch.zeros_like(queries)
        states: list[Tensor] = []
        for layer in self.layers:
            x = layer(x, queries, memory, placed, mask)
            states.append(x)
        return self.norm(torch.stack(states if self.training else states[-1:]))


class Transformer(nn.Module):
    """Section 3.2: the encoder mixes the picture's cells, the decoder turns each query into one object or none."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self, cells: Float[Tensor, "B S D"], positions: Tensor, keep: Bool[Tensor, "B S"] | None, queries: Float[Tensor, "Q D"]
    ) -> Float[Tensor, "L B Q D"]:
        mask = None if keep is None else keep[:, None, None]
        memory = self.encoder(cells, positions, mask)
        return self.decoder(queries.expand(len(cells), -1, -1), memory, positions, mask)


class DETR(nn.Module):
    """A backbone's last map, a transformer over its cells, and two small networks on each query (figure 2)."""

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.prepare = _prepare(config.side)
        self.transformer = Transformer(config)
        self.class_embed = nn.Linear(config.width, config.classes + 1)
        self.bbox_embed = MLP(config.width, config.width, 4, 3)
        self.query_embed = nn.Embedding(config.queries, config.width)
        self.input_proj = nn.Conv2d(backbone.widths[-1], config.width, 1)
        self.backbone = backbone
        self.positions = SinePositions(config.width // 2)

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Bool[Tensor, "B H W"] | None = None) -> Answers:
        cells = self.input_proj(self.backbone.features(pixels)[-1])
        size = cells.shape[-2:]
        if valid is None:
            keep, seen = None, torch.ones(1, *size, dtype=torch.bool, device=pixels.device)
        else:
            seen = F.interpolate(valid[:, None].float(), size=size)[:, 0] > 0
            keep = seen.flatten(1)
        dtype = torch.promote_types(cells.dtype, torch.float32)
        positions = self.positions(seen, dtype).to(cells.dtype).flatten(2).transpose(1, 2)
        states = self.transformer(cells.flatten(2).transpose(1, 2), positions, keep, self.query_embed.weight)
        logits, boxes = self.class_embed(states), self.bbox_embed(states).sigmoid()
        if len(states) == 1:
            return Answers(logits[-1], boxes[-1])
        return Answers(logits[-1], boxes[-1], logits[:-1], boxes[:-1])

    def results(self, out: Answers, images: Images) -> list[Result]:
        """Every query's best class other than "no object", best first, in original pixels; no suppression is needed."""
        scores, labels = out.logits.detach().softmax(-1)[..., :-1].max(-1)
        boxes = cxcywh_to_xyxy(out.boxes.detach())
        found: list[Result] = []
        for i, (window, size) in enumerate(zip(windows(images, boxes), images.sizes)):
            order = scores[i].argsort(descending=True, stable=True)
            pixels = boxes[i, order] * (window[2:] - window[:2]).repeat(2) + window[:2].repeat(2)
            box = clip(map_boxes(pixels, images.to_input[i].inverse()), size)
            found.append(Instances(box.float(), labels[i, order], size, scores[i, order].float()))
        return found


def _prepare(side: int) -> Prepare:
    """The authors' rule scaled to `side`; small pictures fit into a square frame, as the recipe of "tiny" shows them in training."""
    if side <= 128:
        return Prepare(resize="letterbox", size=(side, side), fill=114)
    return Prepare(resize="shortest", size=(side, side * 1333 // 800))


NETWORK = DETR
OVERFIT = {"samples": 2, "lr": 1e-3}
# the first decoder layer attends among equal (zero) inputs: its queries, keys and values cannot be told apart, whatever the weights
UNTRAINED = (r"transformer\.decoder\.layers\.0\.self_attn\.in_proj_weight",)


# --- objective ---------------------------------------------------------------------------------------------------------


class SetCriterion:
    """Eq. 2 after the matching of eq. 1: cross-entropy with a light no-object class, L1 and GIoU of the matched boxes.

    The same loss acts on every decoder layer's answers ("auxiliary decoding losses"), each with its own matching.
    """

    def __init__(self, *, none_weight: float = 0.1, l1_weight: float = 5.0, giou_weight: float = 2.0) -> None:
        self.none_weight, self.l1_weight, self.giou_weight = none_weight, l1_weight, giou_weight

    def __call__(self, out: Answers, batch: Batch) -> dict[str, Tensor]:
        if batch.images is None:
            raise DataError("DETR is trained on images, found a batch without")
        truth = _truth(batch, batch.images, out)
        weights = out.boxes.new_ones(len(batch)) if batch.weights is None else batch.weights.to(out.boxes)
        terms = self._layer(out.logits, out.boxes, truth, weights)
        if out.auxiliary_logits is not None and out.auxiliary_boxes is not None:
            layers = [self._layer(*answers, truth, weights) for answers in zip(out.auxiliary_logits, out.auxiliary_boxes)]
            terms["auxiliary"] = torch.stack([value for layer in layers for value in layer.values()]).sum()
        return terms

    def _layer(self, logits: Tensor, boxes: Tensor, truth: Sequence[Objects], weights: Tensor) -> dict[str, Tensor]:
        image, query, wanted = _match(logits, boxes, truth, self.l1_weight, self.giou_weight)
        none = logits.shape[-1] - 1
        labels = torch.full(logits.shape[:2], none, device=logits.device)
        labels[image, query] = wanted.labels
        balance = torch.where(labels == none, self.none_weight, 1.0).to(logits)
        entropy = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(balance)
        objects = object_count(sum(len(t.labels) for t in truth), boxes)
        matched, share = boxes[image, query], weights[image]
        return {
            "class": (entropy * balance * weights[:, None]).sum() / all_reduce(balance.sum(), "mean"),
            "l1": self.l1_weight * (box_l1(matched, wanted.boxes) * share).sum() / objects,
            "giou": self.giou_weight * (giou_loss(cxcywh_to_xyxy(matched), cxcywh_to_xyxy(wanted.boxes)) * share).sum() / objects,
        }


def _match(
    logits: Tensor, boxes: Tensor, truth: Sequence[Objects], l1_weight: float, giou_weight: float
) -> tuple[Tensor, Tensor, Objects]:
    """Picture and query of every matched answer, (M,) each, and what it should have been."""
    with torch.no_grad():  # one table of costs for the whole batch: a picture's objects are its own columns
        wanted = Objects(torch.cat([t.boxes for t in truth]), torch.cat([t.labels for t in truth]))
        probs, answers = logits.softmax(-1).flatten(0, 1), boxes.flatten(0, 1)
        cost = detection_cost(probs, answers, wanted.labels, wanted.boxes, l1_weight=l1_weight, giou_weight=giou_weight)
        counts = [len(t.labels) for t in truth]
        tables = cost.cpu().unflatten(0, logits.shape[:2]).split(counts, -1)
        pairs = [assign(table[i]) for i, table in enumerate(tables)]
        image = torch.cat([torch.full_like(pair.queries, i) for i, pair in enumerate(pairs)]).to(boxes.device)
        query = torch.cat([pair.queries for pair in pairs]).to(boxes.device)
        begins = itertools.accumulate(counts, initial=0)
        picked = torch.cat([pair.objects + begin for pair, begin in zip(pairs, begins)]).to(boxes.device)
    return image, query, Objects(wanted.boxes[picked], wanted.labels[picked])


def _truth(batch: Batch, images: Images, out: Answers) -> list[Objects]:
    """The batch's objects with boxes as cxcywh fractions of the unpadded input."""
    found: list[Objects] = []
    objects = objects_of(batch.targets, out.logits.shape[-1] - 1, batch.ids)
    for (boxes, labels), window in zip(objects, windows(images, out.boxes), strict=True):
        fractions = (boxes.to(window) - window[:2].repeat(2)) / (window[2:] - window[:2]).repeat(2)
        found.append(Objects(xyxy_to_cxcywh(fractions), labels))
    return found


def objective(network: DETR, **options: float) -> Supervised:
    """Targets are boxes in network-input pixels; options of `SetCriterion`: none_weight, l1_weight, giou_weight."""
    return Supervised(network, SetCriterion(**options))


# --- variants ----------------------------------------------------------------------------------------------------------

_R101 = Part("resnet/101", classes=0, norm="frozen")
VARIANTS: dict[str, Config] = {
    "tiny": Config(
        classes=10,
        backbone=Part("resnet/18", classes=0, layers=(1, 1, 1), width=32),
        width=128,
        heads=4,
        encoder=2,
        decoder=3,
        hidden=256,
        queries=12,
        dropout=0.0,
        side=128,
    ),
    "r50": Config(backbone=_R50),
    "r101": Config(backbone=_R101),
    "r50-dc5": Config(backbone=Part(_R50.name, **_R50.changes, dilate=(4,))),
    "r101-dc5": Config(backbone=Part(_R101.name, **_R101.changes, dilate=(4,))),
}

_HUB = r"model\.(encoder|decoder)\.layers\.(\d+)\."
HEAD = r"class_embed\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
FORMATS: dict[str, Names] = {
    "facebookresearch": Names(
        rename(r"backbone\.0\.body\.(.*)", r"backbone.\1"),
        keep(r"(?:transformer|input_proj|query_embed|class_embed|bbox_embed)\..*"),
    ),
    "transformers": Names(
        rename(r"model\.backbone\.conv_encoder\.model\.(.*)", r"backbone.\1"),
        *(
            join(rf"{_HUB}{theirs}\.{part}_proj\.(weight|bias)", rf"transformer.\1.layers.\2.{ours}.in_proj_\3", i, 3)
            for theirs, ours in (("self_attn", "self_attn"), ("encoder_attn", "multihead_attn"))
            for i, part in enumerate("qkv")
        ),
        rename(rf"{_HUB}self_attn\.out_proj\.(.*)", r"transformer.\1.layers.\2.self_attn.out_proj.\3"),
        rename(rf"{_HUB}encoder_attn\.out_proj\.(.*)", r"transformer.\1.layers.\2.multihead_attn.out_proj.\3"),
        rename(rf"{_HUB}fc([12])\.(.*)", r"transformer.\1.layers.\2.linear\3.\4"),
        rename(rf"{_HUB}self_attn_layer_norm\.(.*)", r"transformer.\1.layers.\2.norm1.\3"),
        rename(rf"{_HUB}encoder_attn_layer_norm\.(.*)", r"transformer.\1.layers.\2.norm2.\3"),
        rename(r"model\.encoder\.layers\.(\d+)\.final_layer_norm\.(.*)", r"transformer.encoder.layers.\1.norm2.\2"),
        rename(r"model\.decoder\.layers\.(\d+)\.final_layer_norm\.(.*)", r"transformer.decoder.layers.\1.norm3.\2"),
        rename(r"model\.decoder\.layernorm\.(.*)", r"transformer.decoder.norm.\1"),
        rename(r"model\.input_projection\.(.*)", r"input_proj.\1"),
        rename(r"model\.query_position_embeddings\.(.*)", r"query_embed.\1"),
        rename(r"class_labels_classifier\.(.*)", r"class_embed.\1"),
        rename(r"bbox_predictor\.(.*)", r"bbox_embed.\1"),
    ),
}


def _published(file: str, ap: float, ap50: float) -> Weights:
    return Weights(
        url=f"https://dl.fbaipublicfiles.com/detr/{file}.pth",
        format="facebookresearch",
        license="Apache-2.0",
        source="github.com/facebookresearch/detr: README.md, hubconf.py",
        prepare=PREPARE,
        digest=file.rsplit("-", 1)[1],
        labels="coco91",
        reports={"AP": ap, "AP50": ap50},
    )


WEIGHTS: dict[str, Weights] = {
    "r50:coco": _published("detr-r50-e632da11", 42.0, 62.4),
    "r101:coco": _published("detr-r101-2c7b67e5", 43.5, 63.8),
    "r50-dc5:coco": _published("detr-r50-dc5-f0fb7ef5", 43.3, 63.1),
    "r101-dc5:coco": _published("detr-r101-dc5-a2e86def", 44.9, 64.7),
}
# counted in the reference; its log of R50 says 41,302,368, without the frozen first layers
PARAMETERS: dict[str, int] = {"r50": 41_524_768, "r50-dc5": 41_524_768, "r101": 60_464_672, "r101-dc5": 60_464_672}
