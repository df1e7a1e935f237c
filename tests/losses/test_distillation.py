"""Distillation losses against their equations, and the objective that holds the teacher."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opticus import zoo
from opticus.losses.classify import CrossEntropy
from opticus.losses.distillation import Distilled, check, fingerprint, hard, logits_of, soft
from opticus.losses.supervised import Supervised
from opticus.structures import (
    Batch,
    CapabilityError,
    Classes,
    Images,
    Objective,
    Picture,
    Prepare,
    Progress,
    TrainError,
    UsageError,
)
from opticus.transforms.prepare import prepare
from opticus.transforms.reprepare import reprepare

AT = Progress(0, 0, 10, 1)


def logits(seed: int, rows: int = 6, classes: int = 5) -> Tensor:
    return 3 * torch.randn(rows, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_hard_is_cross_entropy_with_the_teachers_decision() -> None:
    student, teacher = logits(0), logits(1)
    expected = -sum(float(student[i].log_softmax(0)[int(teacher[i].argmax())]) for i in range(6)) / 6
    assert float(hard(student, teacher)) == pytest.approx(expected, rel=1e-12)
    # only the teacher's decision counts, not how sure it is
    torch.testing.assert_close(hard(student, teacher), hard(student, 100 * teacher))


@pytest.mark.parametrize("temperature", [1.0, 3.0, 20.0])
def test_soft_is_the_equation_and_torchs_divergence(temperature: float) -> None:
    student, teacher = logits(0), logits(1)
    p, q = torch.softmax(teacher / temperature, 1), torch.softmax(student / temperature, 1)
    expected = temperature**2 * float((p * (p.log() - q.log())).sum()) / 6
    assert float(soft(student, teacher, temperature)) == pytest.approx(expected, rel=1e-12)
    theirs = F.kl_div(
        (student / temperature).log_softmax(1), (teacher / temperature).log_softmax(1), reduction="batchmean", log_target=True
    )
    torch.testing.assert_close(soft(student, teacher, temperature), temperature**2 * theirs)
    assert float(soft(teacher, teacher, temperature)) == pytest.approx(0, abs=1e-12)


def test_soft_at_a_high_temperature_matches_centred_logits() -> None:
    """Hinton et al. 2015, eq. 4: for tau far above the logits, tau^2 KL tends to |Z_s - Z_t|^2 / (2 K), logits centred."""
    student, teacher = logits(0), logits(1)
    gap = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    assert float(soft(student, teacher, 1e4)) == pytest.approx(float(gap.square().sum()) / (2 * 5 * 6), rel=1e-3)


def test_sample_weights_scale_each_term() -> None:
    student, teacher = logits(0), logits(1)
    weights = torch.tensor([0.0, 2.0, 1.0, 0.5, 3.0, 1.0], dtype=torch.float64)
    for loss in (hard, soft):
        single = [float(loss(student[i : i + 1], teacher[i : i + 1])) for i in range(6)]
        expected = sum(w * v for w, v in zip(weights.tolist(), single)) / 6
        assert float(loss(student, teacher, weights=weights)) == pytest.approx(expected, rel=1e-12)


# --- the objective ---------------------------------------------------------------------------------------------------------


def small(paper: str = "deit", **changes: Any) -> nn.Module:
    sizes = {"deit": {"width": 12, "depth": 1, "heads": 2, "patch": 16}, "resnet": {}}
    torch.manual_seed(0)
    return zoo.create(f"{paper}/tiny", **{"classes": 4, **sizes[paper], **changes}).double()


def batch_of(network: nn.Module, count: int = 3) -> tuple[Batch, list[Picture]]:
    draw = torch.Generator().manual_seed(5)
    pictures = [Picture(torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8, generator=draw)) for _ in range(count)]
    images = prepare(pictures, cast(Any, network).prepare).to("cpu", torch.float64)
    targets = tuple(Classes(torch.tensor([i % 4])) for i in range(count))
    return Batch(images, targets, tuple(map(str, range(count)))), pictures


def base_of(paper: str, network: nn.Module) -> Supervised:
    return zoo.paper(paper).objective(network)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_a_distillation_token_learns_from_the_teacher_and_the_class_token_from_the_labels(kind: Any) -> None:
    network, teacher = small().train(), small("resnet")
    batch, pictures = batch_of(network)
    terms = Distilled(base_of("deit", network), teacher, kind=kind, temperature=2.0, share=0.25).forward(batch, AT)
    out = cast(Any, network)(cast(Images, batch.images).pixels)
    with torch.no_grad():
        said = teacher.eval()(prepare(pictures, cast(Any, teacher).prepare).pixels.double())
    label = torch.tensor([0, 1, 2])
    taught = F.cross_entropy(out.distilled, said.argmax(1)) if kind == "hard" else soft(out.distilled, said, 2.0)
    assert set(terms) == {"classify", "teacher"}
    torch.testing.assert_close(terms["classify"], 0.75 * F.cross_entropy(out.class_logits, label))
    torch.testing.assert_close(terms["teacher"], 0.25 * taught, rtol=1e-5, atol=1e-7)
    # the published hard loss: both halves weigh one half
    total = sum(Distilled(base_of("deit", network), teacher).forward(batch, AT).values())
    expected = (F.cross_entropy(out.class_logits, label) + F.cross_entropy(out.distilled, said.argmax(1))) / 2
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-7)


def test_any_other_student_learns_both_with_its_logits() -> None:
    network, teacher = small("resnet").train(), small("deit")
    batch, _ = batch_of(network)
    objective = Distilled(base_of("resnet", network), teacher, kind="soft")
    assert isinstance(objective, Objective)
    out, said = network(cast(Images, batch.images).pixels), objective.says(cast(Images, batch.images).pixels)
    terms = objective.forward(batch, AT)
    torch.testing.assert_close(terms["classify"], F.cross_entropy(out, torch.tensor([0, 1, 2])) / 2)
    torch.testing.assert_close(terms["teacher"], soft(out, said) / 2)


def test_the_teacher_is_frozen_and_in_no_state() -> None:
    network, teacher = small().train(), small("resnet").train()
    batch, _ = batch_of(network)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    objective = Distilled(base_of("deit", network), teacher).train()
    assert not any(module.training for module in teacher.modules()), "train() of the objective leaves the teacher in eval mode"
    sum(objective.forward(batch, AT).values()).backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items()), "no statistics move"
    own = {f"network.{key}" for key in network.state_dict()} | {"_extra_state"}
    assert set(objective.state_dict()) == own
    trained = {id(p) for p in objective.parameters_of("all")}
    assert trained == {id(p) for p in network.parameters()}
    assert all(p.grad is not None for p in network.parameters())


def test_resuming_needs_the_same_teacher_and_settings() -> None:
    network, teacher = small(), small("resnet")
    saved = Distilled(base_of("deit", network), teacher, kind="soft").state_dict()
    Distilled(base_of("deit", network), small("resnet"), kind="soft").load_state_dict(saved)
    with pytest.raises(TrainError, match=r"temperature=3.0, now temperature=2.0"):
        Distilled(base_of("deit", network), teacher, kind="soft", temperature=2.0).load_state_dict(saved)
    with pytest.raises(TrainError, match="distill=soft, now distill=hard"):
        Distilled(base_of("deit", network), teacher, kind="hard").load_state_dict(saved)
    with torch.no_grad():
        next(teacher.parameters()).view(-1)[0] += 1
    with pytest.raises(TrainError, match="another teacher"):
        Distilled(base_of("deit", network), teacher, kind="soft").load_state_dict(saved)


def test_columns_choose_the_teachers_outputs() -> None:
    network, teacher = small().train(), small("resnet", classes=6)
    pixels = cast(Images, batch_of(network)[0].images).pixels
    plain = Distilled(base_of("deit", network), teacher).says(pixels)
    torch.testing.assert_close(
        Distilled(base_of("deit", network), teacher, columns=[5, 0, 3, 1]).says(pixels), plain[:, [5, 0, 3, 1]]
    )
    with pytest.raises(UsageError, match="the teacher's logits have shape"):
        Distilled(base_of("deit", network), teacher).forward(batch_of(network)[0], AT)


def test_bad_settings_are_named() -> None:
    base, teacher = base_of("deit", small()), small("resnet")
    for settings, word in (
        ({"kind": "medium"}, "medium"),
        ({"temperature": 0}, "temperature must be greater than 0"),
        ({"temperature": "hot"}, "temperature must be a number, found 'hot'"),
        ({"share": 1.5}, r"share must be in \[0, 1\]"),
    ):
        with pytest.raises(UsageError, match=word):
            check(**{"kind": "hard", "temperature": 3.0, "share": 0.5, **settings})
    with pytest.raises(UsageError, match="temperature must be greater than 0"):
        Distilled(base, teacher, temperature=-1.0)
    with pytest.raises(CapabilityError, match="classifier's logits"):
        logits_of([1, 2])


def test_fingerprint_sees_one_element() -> None:
    one, two = nn.Linear(3, 2), nn.Linear(3, 2)
    two.load_state_dict(one.state_dict())
    assert fingerprint(one) == fingerprint(two)
    with torch.no_grad():
        two.bias[1] += 1e-6
    assert fingerprint(one) != fingerprint(two)


def test_a_criterion_of_another_method_keeps_its_options() -> None:
    network = small("resnet").train()
    batch, _ = batch_of(network)
    plain = Supervised(network, CrossEntropy(smoothing=0.2)).forward(batch, AT)["classify"]
    terms = Distilled(Supervised(network, CrossEntropy(smoothing=0.2)), small("deit"), share=0.1).forward(batch, AT)
    torch.testing.assert_close(terms["classify"], 0.9 * plain)


# --- what the teacher sees -------------------------------------------------------------------------------------------------

SOURCE = Prepare(size=(24, 32))


@pytest.mark.parametrize(
    "target",
    [
        Prepare(size=(24, 32)),
        Prepare(size=(24, 32), mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0)),
        Prepare(size=(24, 32), scale=1.0, mean=(104.0, 117.0, 124.0), std=(1.0, 1.0, 1.0), order="bgr"),
        Prepare(size=(24, 32), channels=1, mean=(0.3,), std=(0.2,)),
        Prepare(size=(24, 32), stride=10),
        Prepare(size=(48, 40)),
        Prepare(size=(12, 16), interpolation="bicubic"),
        Prepare(size=(30, 0), resize="shortest"),
        Prepare(resize="none", mean=(0.5, 0.5, 0.5)),
    ],
    ids=["same", "normalised", "caffe", "grey", "stride", "larger", "smaller", "shortest", "none"],
)
@pytest.mark.parametrize("channels", [3, 1])
def test_reprepared_is_what_the_other_rule_would_have_made(target: Prepare, channels: int) -> None:
    """To one grey level (the rule's own resampling rounds to whole ones)."""
    source = SOURCE.with_channels(channels)
    draw = torch.Generator().manual_seed(1)
    coarse = torch.rand(2, channels, 6, 8, generator=draw)
    levels = (255 * F.interpolate(coarse, (24, 32), mode="bilinear")).to(torch.uint8).permute(0, 2, 3, 1)
    pictures = [Picture(level.contiguous()) for level in levels]
    wanted = prepare(pictures, target).pixels
    found = reprepare(prepare(pictures, source).pixels, None, source, target)
    assert found.shape == wanted.shape
    level = target.scale / min(target.std)
    assert float((found - wanted).abs().max()) <= 1.1 * level


def test_reprepared_keeps_the_whole_frame_where_the_other_rule_would_crop() -> None:
    pixels = torch.randn(1, 3, 24, 32)
    found = reprepare(pixels, None, SOURCE, Prepare(resize="shortest", size=(48, 0), crop=(40, 40)))
    assert found.shape == (1, 3, 40, 40)


def test_padding_is_zero_for_the_other_rule_too() -> None:
    valid = torch.ones(1, 24, 32, dtype=torch.bool)
    valid[:, :, 20:] = False
    pixels = torch.randn(1, 3, 24, 32) * valid
    found = reprepare(pixels, valid, SOURCE, Prepare(size=(24, 32), mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0)))
    assert float(found[..., 20:].abs().max()) < 1e-6 < float(found[..., :20].abs().max())


def test_channels_that_cannot_be_converted_are_named() -> None:
    four = Prepare(size=(24, 32), channels=4, mean=(0.0,) * 4, std=(1.0,) * 4)
    with pytest.raises(UsageError, match="with 3 channels cannot be shown to a network that takes 4"):
        reprepare(torch.zeros(1, 3, 24, 32), None, SOURCE, four)
