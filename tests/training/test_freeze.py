"""Fine-tuning by depth: what is frozen stays bit for bit, statistics included, thaws when it should, and resumes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import opticus
from opticus.structures import TrainError, UsageError, WeightsError
from opticus.training import optim
from opticus.training.freeze import Freezer, layer_factors, units
from opticus.training.recipe import Optim, Recipe
from opticus.training.state import load_state
from opticus.transforms.geometry import Resize
from opticus.verbs.verify import differences

SHORT: dict[str, Any] = {
    "steps": 3,
    "batch": 16,
    "evaluate_every": 0,
    "save_every": 1,
    "test": False,
    "quiet": True,
    "average": None,
}


def recipe(**changes: Any) -> Recipe:
    return Recipe("resnet/tiny", "digits", steps=10, **changes)


def test_units_follow_the_depth_of_the_network() -> None:
    names = [unit.name for unit in units(opticus.create("resnet/tiny"))]
    assert names == ["conv1", "layer1.0", "layer2.0", "layer3.0", "layer4.0", "fc"]
    vit = units(opticus.create("vit/tiny"))
    assert [unit.name for unit in vit] == ["patch_embed", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "head"]
    assert {"cls_token", "pos_embed"} <= {name for name, _ in vit[0].parameters}
    assert "norm.weight" in {name for name, _ in vit[-1].parameters}
    for model in ("resnet/tiny", "vit/tiny", "lenet/5", "detr/tiny", "centernet/tiny"):
        network = opticus.create(model)
        rows = [id(p) for unit in units(network) for _, p in unit.parameters]
        assert len(rows) == len(set(rows)) and set(rows) == {id(p) for p in network.parameters()}


@pytest.mark.parametrize("freeze", [2, -1, "layer[12]", ("conv1", "bn1")])
def test_frozen_parts_do_not_move(freeze: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = opticus.create("resnet/tiny")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    run = opticus.train(model, "crops", out=tmp_path / "run", freeze=freeze, **SHORT)
    after = run.model.state_dict()
    held = {2: ("conv1.", "bn1.", "layer1."), -1: ("conv1.", "bn1.", "layer"), "layer[12]": ("layer1.", "layer2.")}
    prefixes = held.get(freeze, ("conv1.", "bn1.")) if not isinstance(freeze, tuple) else ("conv1.", "bn1.")
    for key, value in before.items():
        if key.startswith(prefixes) and "num_batches" not in key:
            assert torch.equal(value, after[key]), f"{key} moved"
    moved = [key for key, value in before.items() if not key.startswith(prefixes) and not torch.equal(value, after[key])]
    assert "fc.weight" in moved


def test_units_thaw_from_the_output() -> None:
    network = opticus.create("resnet/tiny").train()
    freezer = Freezer(network, recipe(freeze=4, unfreeze=(0.25, 0.5)))

    def trained() -> list[str]:
        return [u.name for u in units(network) if all(p.requires_grad for _, p in u.parameters)]

    freezer.apply(0.0)
    assert trained() == ["layer4.0", "fc"] and not network.get_submodule("bn1").training
    freezer.apply(0.25)
    assert trained() == ["layer2.0", "layer3.0", "layer4.0", "fc"]
    assert network.get_submodule("layer2.0.bn1").training and not network.get_submodule("layer1.0.bn1").training
    freezer.apply(0.5)
    assert len(trained()) == 6 and network.get_submodule("bn1").training


def test_layer_decay_reaches_the_optimiser() -> None:
    network = opticus.create("vit/tiny", classes=10)
    factors = layer_factors(network, 0.5)
    objective: Any = __import__("opticus.models.backbones.vit", fromlist=["objective"]).objective(network)
    rows = optim.build(objective, "all", Optim(lr=1.0), factors).param_groups
    rates = {id(p): row["lr"] for row in rows for p in row["params"]}
    assert rates[id(network.get_parameter("head.weight"))] == 1.0
    assert rates[id(network.get_parameter("blocks.3.mlp.fc1.weight"))] == 0.5
    assert rates[id(network.get_parameter("patch_embed.proj.weight"))] == 0.5**5
    assert rates[id(network.get_parameter("cls_token"))] == 0.5**5


def test_a_thawing_run_resumes_bit_exactly(tmp_path: Path) -> None:
    options = {**SHORT, "steps": 6, "average": 0.9, "freeze": 3, "unfreeze": (0.3, 0.6), "layer_decay": 0.7}
    opticus.train("resnet/tiny", "crops", out=tmp_path / "whole", **options)
    with pytest.MonkeyPatch.context() as patch:
        from opticus.training.loop import Run

        whole = Run.train_step

        def stop(self: Run, batches: Any) -> None:
            if self.step == 4:
                raise KeyboardInterrupt
            whole(self, batches)

        patch.setattr(Run, "train_step", stop)
        with pytest.raises(KeyboardInterrupt):
            opticus.train("resnet/tiny", "crops", out=tmp_path / "broken", **options)
    opticus.train(resume=tmp_path / "broken", quiet=True, test=False)
    count, different = differences(load_state(tmp_path / "whole"), load_state(tmp_path / "broken"))
    assert count > 40 and different == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"freeze": 6}, "at least one must be trained"),
        ({"freeze": "layr1"}, "matches no parameter"),
        ({"freeze": "."}, "leaves nothing"),
        ({"unfreeze": (0.5,)}, "needs freeze="),
        ({"freeze": 1, "unfreeze": (1.5,)}, "shares of the run"),
        ({"layer_decay": 2.0}, "layer_decay"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        opticus.train("resnet/tiny", "crops", out=tmp_path / "run", **SHORT, **options)


def test_a_part_starts_from_trained_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part = {"layers": (1, 1, 1), "width": 32}
    trained = opticus.train("resnet/18", "crops", out=tmp_path / "cls", **part, **SHORT).model
    detector = {"backbone_weights": tmp_path / "cls", "freeze": "backbone"}
    run = opticus.train("detr/tiny", "scenes", out=tmp_path / "det", **{**SHORT, "batch": 4}, **detector)
    inner: Any = run.model.get_submodule("backbone")
    for key, value in inner.state_dict().items():
        assert torch.equal(value, trained.state_dict()[key]) or "num_batches" in key, key
    assert isinstance(inner, nn.Module) and "left out of the backbone: fc." in capsys.readouterr().err
    assert run.model.card.provenance["backbone_weights"].endswith("cls")
    other = opticus.train("lenet/5", "digits", out=tmp_path / "other", **SHORT)
    with pytest.raises(WeightsError, match=r"does not fit the backbone resnet/18 of detr/tiny: .*missing"):
        opticus.train("detr/tiny", "scenes", out=tmp_path / "bad", **SHORT, backbone_weights=other.out)
    with pytest.raises(UsageError, match="is not a part"):
        opticus.train("detr/tiny", "scenes", out=tmp_path / "worse", **SHORT, heads_weights=tmp_path / "cls")


def test_a_recipe_trains_a_part_first(tmp_path: Path) -> None:
    first = Recipe("resnet/18", "crops", transforms=(Resize((40, 40)),), batch=8, steps=2, evaluate_every=0)
    whole = Recipe(
        "detr/tiny", "scenes", pretrain={"backbone": first}, batch=2, steps=1, optim={"all": Optim(lr=0.0, weight_decay=0)}
    )
    short: dict[str, Any] = {"test": False, "quiet": True, "evaluate_every": 0}
    run = opticus.train("detr/tiny", "scenes", recipe=whole, out=tmp_path / "run", **short)
    part: Any = opticus.load(tmp_path / "run" / "pretrained" / "backbone")
    trained: Any = run.model.get_submodule("backbone")
    for key, value in trained.named_parameters():
        assert torch.equal(value, part.get_parameter(key)), key
    assert part.prepare.resize == "none"
    assert run.model.card.provenance["backbone_weights"] == "resnet/18 trained on crops"
    opticus.train("detr/tiny", "scenes", out=tmp_path / "run", recipe=whole, resume=True, **{**short, "steps": 2})
    again = (tmp_path / "run" / "pretrained" / "backbone" / "results.csv").stat().st_mtime_ns
    shutil.rmtree(tmp_path / "run" / "state")
    shutil.rmtree(tmp_path / "run" / "weights")
    opticus.train("detr/tiny", "scenes", out=tmp_path / "run", recipe=whole, **short)  # the finished part is used as it is
    assert (tmp_path / "run" / "pretrained" / "backbone" / "results.csv").stat().st_mtime_ns == again
    shutil.rmtree(tmp_path / "run" / "weights")
    shutil.rmtree(tmp_path / "run" / "state")
    other = replace(whole, pretrain={"backbone": replace(first, steps=1)})
    with pytest.raises(TrainError, match="trained by another recipe"):
        opticus.train("detr/tiny", "scenes", recipe=other, out=tmp_path / "run", **short)
    given = opticus.train(
        "detr/tiny", "scenes", recipe=whole, out=tmp_path / "given", backbone_weights=part_folder(tmp_path), **short
    )
    assert not (given.out / "pretrained").exists()
    wrong = replace(whole, pretrain={"heads": first})
    with pytest.raises(UsageError, match="heads is not a part"):
        opticus.train("detr/tiny", "scenes", recipe=wrong, out=tmp_path / "wrong", **short)


def part_folder(folder: Path) -> Path:
    return folder / "run" / "pretrained" / "backbone"
