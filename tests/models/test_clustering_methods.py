"""SwAV, DeepCluster-v2 and OBoW: their equations as literal loops, what happens between steps, bad settings, recipes, a run."""

import math
from dataclasses import replace

import pytest
import torch
from papers import at, batch_for, new
from torch.nn import functional as F

import opticus
from opticus.data.subset import Subset
from opticus.matching.prototypes import spherical_kmeans
from opticus.models.selfsup import deepcluster, obow, swav
from opticus.recipes import deepcluster as deepcluster_recipes
from opticus.recipes import obow as obow_recipes
from opticus.recipes import swav as swav_recipes
from opticus.structures import Classes, Sample, UsageError
from opticus.structures.contracts import Progress
from opticus.transforms.chain import apply
from opticus.transforms.draw import draw_for
from opticus.transforms.views import Patches, View, Views

SMALL = {
    swav: {"prototypes": 6, "hidden": 24, "outputs": 16, "frozen_epochs": 0},
    deepcluster: {"prototypes": (3, 2), "hidden": 24, "outputs": 16, "memory": 2},
    obow: {"words": 12, "hidden": 24},
}


def learner(paper, **options):
    torch.manual_seed(0)
    return paper.objective(new("swav/tiny"), **{**SMALL[paper], **options}).train()


def batch(count=4):
    return batch_for(new("swav/tiny"), "embed", count)


# --- equations -------------------------------------------------------------------------------------------------------------


def test_swapped_prediction_is_the_sum_in_the_paper():
    scores = torch.randn(3, 2, 5, dtype=torch.float64).unbind()
    codes = torch.rand(2, 2, 5, dtype=torch.float64).unbind()
    total = 0.0
    for s in range(2):
        for t in range(3):
            for n in range(2):
                if s != t:
                    norm = sum(math.exp(scores[t][n, k] / 0.1) for k in range(5))
                    total -= sum(codes[s][n, k] * math.log(math.exp(scores[t][n, k] / 0.1) / norm) for k in range(5)) / (2 * 4)
    assert float(swav.swapped(scores, codes, 0.1)) == pytest.approx(float(total), rel=1e-12)


def test_spherical_kmeans_is_lloyds_loop():
    vectors = F.normalize(torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)), dim=1)
    found = spherical_kmeans(vectors, 5, rounds=4, seed=3)
    centres = [vectors[i] for i in torch.randperm(40, generator=torch.Generator().manual_seed(3))[:5].tolist()]
    for _ in range(4):
        owners = [max(range(5), key=lambda k: float(v @ centres[k])) for v in vectors]
        for k in range(5):
            own = [v for v, owner in zip(vectors, owners) if owner == k]
            if own:
                mean = sum(own) / len(own)
                centres[k] = mean / mean.norm()
    torch.testing.assert_close(found.centres, torch.stack(centres), rtol=1e-12, atol=1e-12)
    assert found.owners.tolist() == [max(range(5), key=lambda k: float(v @ centres[k])) for v in vectors]
    with pytest.raises(UsageError, match="41 centres were asked for, there are 40 vectors"):
        spherical_kmeans(vectors, 41)


def test_a_bag_is_the_largest_soft_code_of_every_word():
    words = obow.Vocabulary(4, obow.Method(words=5, sharpness=3.0)).double().eval()
    maps = torch.rand(2, 4, 2, 3, dtype=torch.float64)
    bags = words.bags(maps)
    for b in range(2):
        largest = [0.0] * 5
        for y in range(2):
            for x in range(3):
                weights = [math.exp(-3.0 / 0.5 * float((maps[b, :, y, x] - words.words[k]).square().sum())) for k in range(5)]
                largest = [max(old, w / sum(weights)) for old, w in zip(largest, weights)]
        assert bags[b].tolist() == pytest.approx([value / sum(largest) for value in largest], rel=1e-9)


# --- between steps ---------------------------------------------------------------------------------------------------------


def test_prototypes_rest_and_have_unit_length():
    objective = learner(swav, frozen_epochs=1)
    for epoch, still in ((0, True), (1, False)):
        objective.zero_grad()
        now = Progress(epoch * 10, epoch, 100, 10)
        objective.forward(batch(), now)["swav"].backward()
        objective.before_update(now)
        assert (objective.prototypes.weight.grad is None) == still and objective.head[0].weight.grad is not None
        torch.testing.assert_close(objective.prototypes.weight.norm(dim=1), torch.ones(6))


def test_a_queue_takes_part_once_it_is_full():
    objective, without = learner(swav, queue=8, queue_epoch=1), learner(swav)
    views = batch()
    other = replace(views, views=tuple(view._replace(pixels=view.pixels.flip(1) - 1) for view in views.views))
    for step, epoch, filled in ((0, 0, 0), (1, 1, 0), (2, 1, 4), (3, 1, 8)):
        now = Progress(step, epoch, 4, 2)
        assert int(objective.queues[0].filled) == filled
        with torch.no_grad():
            own, plain = (float(each.forward(other, now)["swav"]) for each in (objective, without))
        assert (own == pytest.approx(plain, rel=1e-6)) == (filled < 8)
        objective._fresh.clear()  # what was looked at does not enter
        objective.forward(views, now)
        objective.after_step(now)


def test_the_first_epoch_only_looks_and_the_memory_goes_on(tmp_path):
    objective, views = learner(deepcluster), batch()
    loss = objective.forward(views, Progress(0, 0, 4, 2))["deepcluster"]
    loss.backward()
    objective.before_update(Progress(0, 0, 4, 2))
    assert float(loss.detach()) == 0 and all(p.grad is None for p in objective.parameters_of("all"))
    assert objective.figures()["surprise"] == pytest.approx(math.log(3))
    objective.after_step(Progress(0, 0, 4, 2, last_of_epoch=True))
    assert int(objective.memory.filled) == 4 == len(objective.memory.keys), "2 places have grown to 4"
    assert bool((objective.memory.labels >= 0).all()) and objective.clustered
    again = learner(deepcluster)
    again.load_state_dict(objective.state_dict())
    one, two = (each.forward(views, Progress(1, 1, 4, 2))["deepcluster"] for each in (objective, again))
    assert float(one) > 0 and torch.equal(one, two)
    unknown = batch()
    unknown.ids = tuple(f"new {name}" for name in unknown.ids)
    assert float(objective.forward(unknown, Progress(1, 1, 4, 2))["deepcluster"]) == 0


def test_words_are_replaced_and_the_teacher_follows():
    objective = learner(obow, momentum=0.9, words=12)
    before = objective.vocabularies[-1].words.clone()
    objective.forward(batch(), at(0, 10))
    assert torch.equal(objective.vocabularies[-1].words, before)
    with torch.no_grad():
        for parameter in objective.network.parameters():
            parameter += 1
    weight = objective.teacher.backbone.conv1.weight.clone()
    objective.after_step(at(0, 10))
    decay = 1 - 0.1 * (1 + math.cos(math.pi * 0.1)) / 2
    torch.testing.assert_close(
        objective.teacher.backbone.conv1.weight - weight, torch.full_like(weight, 1 - decay), rtol=1e-4, atol=1e-5
    )
    changed = (objective.vocabularies[-1].words != before).any(1)
    assert changed.tolist() == [True] * 4 + [False] * 8


@pytest.mark.parametrize(
    ("paper", "options", "words"),
    [
        (swav, {"epsilon": 0.0}, "temperature and epsilon must be above 0"),
        (swav, {"queue": -1}, "queue at least 0"),
        (deepcluster, {"prototypes": ()}, "must be at least 1"),
        (deepcluster, {"temperature": 0}, "temperature must be above 0"),
        (obow, {"sample": "random"}, "sample must be one of local, single, global"),
        (obow, {"levels": 9}, "levels=9 maps are asked for"),
    ],
    ids=str,
)
def test_bad_settings_are_named(paper, options, words):
    with pytest.raises(UsageError, match=words):
        learner(paper, **options)


def test_maps_without_an_inside_are_named():
    with pytest.raises(UsageError, match="nothing is left of a map of 4 x 4 cells"):
        learner(obow, border=2).forward(batch(), at(0, 1))


# --- recipes ---------------------------------------------------------------------------------------------------------------


def sample():
    pixels = torch.randint(0, 256, (300, 280, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return Sample.of(pixels, Classes(torch.tensor([1])), "a")


@pytest.mark.parametrize(
    ("recipe", "sizes"),
    [
        (swav_recipes.imagenet("swav/r50"), [224] * 2 + [96] * 6),
        (deepcluster_recipes.imagenet("deepcluster/r50"), [224] * 2 + [96] * 6),
        (obow_recipes.imagenet("obow/r50"), [224, 160, 160] + [96] * 5),
        (obow_recipes.small("obow/tiny"), [32, 24, 24]),
    ],
    ids=lambda value: value.model if hasattr(value, "model") else "",
)
def test_recipes_make_the_published_views(recipe, sizes):
    seen = apply(recipe.transforms, sample(), draw_for(0, 0, 0))
    assert [view.size for _, view in seen.views] == [(side, side) for side in sizes]
    assert [role for role, _ in seen.views] == ["local" if side == 96 else "global" for side in sizes]
    assert "image" not in seen.inputs


def test_patches_are_different_parts_of_one_crop():
    views = Views((View("global", ()),), keep=True), Patches((), count=9, size=96, jitter=0)
    seen = apply(views, sample(), draw_for(0, 0, 0))
    corners = {tuple(part.matrix[:2, 2].tolist()) for _, part in seen.views[1:]}
    assert corners == {(-92.0 * x, -102.0 * y) for x in range(3) for y in range(3)}
    with pytest.raises(UsageError, match="do not fit into a crop"):
        apply((Patches((), size=290),), sample(), draw_for(0, 0, 0))


@pytest.mark.parametrize("paper", [swav, deepcluster, obow])
def test_a_run_leaves_a_plain_backbone(paper, tmp_path):
    name = paper.__name__.rpartition(".")[2]
    train = Subset(opticus.open_data("crops", "train"), range(16))
    opticus.train(
        f"{name}/tiny", data=train, out=tmp_path / "run", steps=4, batch=8, quiet=True, options=SMALL[paper], log_every=1,
        evaluate_every=10**6, workers=0, test=False,
    )  # fmt: skip
    alone = opticus.load(tmp_path / "run" / "weights" / "backbone.safetensors")
    assert alone.card.name == "resnet/tiny"
