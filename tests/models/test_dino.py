"""DINO: schedules at their ends, the rows of its ablation table as settings, what happens between steps, the alarm."""

import csv
import math
from dataclasses import replace

import pytest
import torch
from papers import at, batch_for, new

import opticus
from opticus import zoo
from opticus.data.subset import Subset
from opticus.models.selfsup import dino
from opticus.recipes import dino as recipes
from opticus.structures import UsageError
from opticus.structures.contracts import Progress

SMALL = {"outputs": 32, "hidden": 48, "bottleneck": 16}


def learner(**options):
    return dino.objective(new("dino/tiny_vit"), **{**SMALL, **options}).train()


def batch(count=4):
    return batch_for(new("dino/tiny_vit"), "embed", count)


# --- schedules -------------------------------------------------------------------------------------------------------------


def test_schedules_reach_their_stated_ends():
    method = dino.Method()
    assert [method.temperature(epoch) for epoch in (0, 29, 30, 299)] == pytest.approx([0.04, 0.07, 0.07, 0.07])
    assert method.temperature(1) == pytest.approx(0.04 + 0.03 / 29)
    assert method.decay(0.0) == pytest.approx(0.996) and method.decay(1.0) == pytest.approx(1.0)
    assert method.decay(0.5) == pytest.approx(0.998)
    assert method.student == 0.1


def test_recipe_has_the_published_schedules():
    from opticus.training import optim

    recipe = recipes.imagenet("dino/s16")
    rate, decay = recipe.schedules
    total = 300
    weights = [optim.factor_at(decay, e / total) * 0.04 for e in (0, total)]
    assert weights == pytest.approx([0.04, 0.4])
    lr = recipe.optim["all"].lr
    assert lr == pytest.approx(0.0005 * 4)
    rates = [optim.factor_at(rate, e / total) * lr for e in (0, 5, 10, total)]
    assert rates == pytest.approx([0.0, lr / 2, lr, 1e-6])
    assert recipe.changes["backbone"].changes["drop_path"] == 0.1


# --- ablations -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"follows": "student"},
        {"follows": "previous-iteration"},
        {"follows": "previous-epoch"},
        {"balance": "sinkhorn"},
        {"balance": "none"},
        {"loss": "mse"},
        {"predictor": True},
        {"depth": 1},
        {"depth": 4, "head_norm": True},
        {"bottleneck": 0},
        {"gain": True},
    ],
    ids=str,
)
def test_every_ablation_trains_a_step(options):
    objective, views = learner(**options), batch()
    loss = objective.forward(views, at(0, 10))["dino"]
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert all(p.grad is not None for p in objective.parameters_of("all"))
    assert not any(p.requires_grad for p in objective.network.parameters())
    objective.after_step(at(0, 10))
    assert all(math.isfinite(v) for v in objective.figures().values())


def changed(objective, now):
    """Every student weight + 1, then the step's end; what a teacher weight became."""
    with torch.no_grad():
        for parameter in objective.student.parameters():
            parameter += 1
    before = objective.network.backbone.norm.weight.clone()
    objective.after_step(now)
    return (objective.network.backbone.norm.weight - before).mean().item()


def test_how_the_teacher_follows():
    middle, last = Progress(3, 0, 10, 5), Progress(4, 0, 10, 5, last_of_epoch=True)
    start = Progress(0, 0, 10, 5)
    assert changed(learner(momentum=0.9), start) == pytest.approx(0.1, abs=1e-6)
    assert changed(learner(follows="student"), middle) == pytest.approx(1, abs=1e-6)
    late = learner(follows="previous-iteration")
    assert [changed(late, middle), changed(late, middle)] == pytest.approx([0, 1], abs=1e-6)
    slow = learner(follows="previous-epoch")
    assert [changed(slow, middle), changed(slow, last)] == pytest.approx([0, 2], abs=1e-6)


def test_the_centre_is_that_of_all_micro_batches():
    """Two micro-batches of two pictures move the centre as one batch of four does."""
    whole, parts = learner(), learner()
    parts.load_state_dict(whole.state_dict())
    views = batch(4)
    whole.forward(views, at(0, 10))
    whole.after_step(at(0, 10))
    for first in (0, 2):
        half = tuple(view._replace(pixels=view.pixels[first : first + 2]) for view in views.views)
        parts.forward(replace(views, views=half), at(0, 10))
    parts.after_step(at(0, 10))
    torch.testing.assert_close(whole.centre, parts.centre)
    assert float(whole.centre.abs().sum()) > 0


def test_the_last_layer_keeps_still_in_the_first_epoch():
    objective = learner()
    for epoch, still in ((0, True), (1, False)):
        objective.zero_grad()
        now = Progress(epoch * 10, epoch, 100, 10)
        objective.forward(batch(), now)["dino"].backward()
        objective.before_update(now)
        assert (objective.student_head.prototypes.grad is None) == still
        assert objective.student_head.mlp[0].weight.grad is not None


def test_crops_of_one_size_go_through_the_network_together():
    objective, views, calls = learner(), batch(), []
    objective.student.register_forward_hook(lambda module, inputs, out: calls.append(len(inputs[0])))
    small = views.views[0]._replace(pixels=views.views[0].pixels[:, :, :16, :16].contiguous())
    views.views, views.roles = (*views.views, small, small, small), (*views.roles, "local", "local", "local")
    objective.forward(views, at(0, 10))
    assert calls == [8, 12]


def test_bad_settings_are_named():
    for options, words in (
        ({"balance": "centering"}, "balance must be one of centre, sinkhorn, none"),
        ({"student": 0.0}, "temperatures must be above 0"),
        ({"momentum": 1.5}, "momentum must be in"),
        ({"outputs": 0}, "outputs, depth and hidden >= 1"),
    ):
        with pytest.raises(UsageError, match=words):
            learner(**options)
    with pytest.raises(TypeError, match="unexpected keyword"):
        learner(centering=True)


# --- a run -----------------------------------------------------------------------------------------------------------------


def test_a_run_leaves_a_plain_backbone_and_its_figures(tmp_path):
    train, val = (opticus.open_data("crops", split) for split in ("train", "val"))
    run = opticus.train(
        "dino/tiny", data=Subset(train, range(32)), out=tmp_path / "run", steps=3, batch=8, quiet=True,
        options={**SMALL, "teacher_epochs": 0}, log_every=1, save_every=10**6, workers=0,
    )  # fmt: skip
    rows = list(csv.DictReader((run.out / "results.csv").open()))
    assert {"watch/entropy", "watch/kl", "watch/information", "watch/spread", "watch/alarm"} <= set(rows[-1])
    alone = opticus.load(run.out / "weights" / "backbone.safetensors")
    whole = opticus.load(run.out)
    assert (alone.card.name, alone.card.task, whole.card.name, whole.card.task) == ("resnet/tiny", "classify", "dino/tiny", "embed")
    picture = val[0].picture
    found = whole.predict(picture.pixels.numpy())[0]
    again = alone.predict(picture.pixels.numpy())[0]
    torch.testing.assert_close(found.vector, again.vector)
    tuned = opticus.train(
        "resnet/tiny", data=Subset(train, range(32)), weights=str(run.out), out=tmp_path / "tuned", steps=1, batch=8, quiet=True,
        test=False, workers=0,
    )  # fmt: skip
    assert tuned.model.config.classes == 10


def test_val_is_by_neighbours_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTICUS_HOME", str(tmp_path))
    done = opticus.evaluate(opticus.create("dino/tiny"), data="digits", quiet=True)
    assert 0.2 < done["top1"] < 1 and done.protocol["probe"]["method"] == "knn" and "fitted on" in done.protocol
    with pytest.raises(opticus.Error, match="neighbours in the train split"):
        opticus.evaluate(opticus.create("dino/tiny"), data="digits", split="train", quiet=True)


@pytest.mark.parametrize("collapses", [True, False])
def test_the_alarm_is_given_while_it_happens(tmp_path, capsys, collapses):
    """Without centring and with a sharp teacher that copies the student, all pictures get one answer; the log says so.

    The other run hardly moves from its random weights, whose sharpened and centred answers differ from picture to picture.
    """
    train = Subset(opticus.open_data("crops", "train"), range(64))
    change = {"balance": "none", "follows": "student"} if collapses else {}
    opticus.train(
        "dino/tiny", data=train, out=tmp_path / "run", steps=40, batch=16, lr=1e-2 if collapses else 1e-4, quiet=True,
        options={**SMALL, "teacher_epochs": 0, "frozen_epochs": 0, **change}, log_every=4, workers=0, test=False,
    )  # fmt: skip
    assert ("the representation collapses: " in capsys.readouterr().err) == collapses
    rows = [row for row in csv.DictReader((tmp_path / "run" / "results.csv").open()) if row["watch/alarm"]]
    assert float(rows[-1]["watch/alarm"]) == collapses


def test_names_of_torch_hub_are_aliases():
    assert zoo.canonical("dino_vits16") == "dino/s16:pretrained"
    assert zoo.split("dino_resnet50") == ("dino", "r50", "pretrained")
    assert zoo.weights_row("dino_vitb8").url.endswith("dino_vitbase8_pretrain.pth")


def test_a_published_file_of_either_kind_loads(tmp_path):
    """Backbone-only and full checkpoint, under the names of the authors, as torch writes them."""
    model = opticus.create("dino/tiny_vit")
    plain = {k.removeprefix("backbone."): v for k, v in model.state_dict().items()}
    torch.save(plain, tmp_path / "backbone.pth")
    last = {"weight_g": torch.ones(8, 1), "weight_v": torch.ones(8, 4)}
    heads = {"head.mlp.0.weight": torch.zeros(4, 96)} | {f"head.last_layer.{key}": value for key, value in last.items()}
    teacher = {f"backbone.{k}": v for k, v in plain.items()} | heads
    student = {f"module.{k}": v + 1 for k, v in teacher.items()}
    torch.save(
        {"student": student, "teacher": teacher, "epoch": 3, "dino_loss": {"center": torch.zeros(1, 8)}}, tmp_path / "full.pth"
    )
    for name in ("backbone", "full"):
        loaded = opticus.load("dino/tiny_vit", tmp_path / f"{name}.pth", quiet=True)
        for key, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value), (name, key)
