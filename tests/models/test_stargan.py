"""StarGAN: its conditions and losses, beyond what every paper is tested for."""

import pytest
import torch

from opticus.data.open import open_data
from opticus.models.generative.stargan import Config, Discriminator, Domains, StarGAN, evaluate
from opticus.structures import Batch, Classes, DataError, Picture, Progress, UsageError
from opticus.transforms.prepare import prepare
from opticus.verbs.models import create

SMALL = {"size": 16, "width": 4, "blocks": 1}
WAY = {"width": 4, "depth": 3}


def batch_of(network: StarGAN, labels: list[list[int]]) -> Batch:
    maker = torch.Generator().manual_seed(1)
    shown = [Picture(torch.randint(256, (16, 16, 3), generator=maker, dtype=torch.uint8)) for _ in labels]
    targets = tuple(Classes(torch.tensor(one, dtype=torch.int64)) for one in labels)
    return Batch(prepare(shown, network.prepare), targets, tuple(f"picture {i}" for i in range(len(labels))))


def at(phase: str) -> Progress:
    return Progress(0, 0, 1, 1, phase)


def test_the_mask_vector_of_two_label_sets() -> None:
    """Eq. 7: the labels of all sets, then which set the label is of."""
    network = StarGAN(Config(classes=5, sets=(3, 2), **SMALL))
    assert network.condition(torch.tensor([1, 4])).tolist() == [[0, 1, 0, 0, 0, 1, 0], [0, 0, 0, 0, 1, 0, 1]]
    assert network.main[0].in_channels == 3 + 7
    one = StarGAN(Config(classes=3, **SMALL))
    assert one.condition(torch.tensor([2])).tolist() == [[0, 0, 1]] and one.main[0].in_channels == 6


def test_wanted_domains_come_from_the_same_label_set() -> None:
    objective = Domains(StarGAN(Config(classes=5, sets=(3, 2), **SMALL)), **WAY)
    vectors, sets = objective.vectors_of(batch_of(objective.network, [[0], [4], [2], [3], [1]]), torch.zeros(1))
    assert sets.tolist() == [0, 1, 0, 1, 0]
    torch.manual_seed(0)
    drawn = torch.stack([objective.wanted_of(vectors, sets) for _ in range(40)])
    assert bool((drawn[:, :, 5:].argmax(2) == sets).all())
    assert len(torch.unique(drawn[:, 0, :5].argmax(1))) == 3, "every domain of the set is asked for"


def test_domains_are_told_apart_within_their_set_only() -> None:
    objective = Domains(StarGAN(Config(classes=5, sets=(3, 2), **SMALL)), **WAY)
    logits = torch.tensor([[1.0, 2.0, 0.0, 50.0, 60.0]]).requires_grad_()
    vectors = objective.network.condition(torch.tensor([1]))
    loss = objective.classified(logits, vectors, torch.tensor([0]))
    torch.testing.assert_close(loss, -torch.tensor([[1.0, 2.0, 0.0]]).log_softmax(1)[:, 1])
    loss.sum().backward()
    assert torch.equal(logits.grad[0, 3:], torch.zeros(2)) and bool(torch.isfinite(logits.grad).all())


def test_attributes_are_yes_or_no() -> None:
    objective = Domains(StarGAN(Config(classes=4, **SMALL)), attributes=True, **WAY)
    batch = batch_of(objective.network, [[0, 2], [], [3]])
    vectors, _ = objective.vectors_of(batch, torch.zeros(1))
    assert vectors.tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    logits = torch.randn(3, 4)
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits, vectors, reduction="sum") / 3
    torch.testing.assert_close(objective.classified(logits, vectors, torch.zeros(3).long()).mean(), wanted)
    with pytest.raises(DataError, match="picture 0: a picture needs one domain"):
        Domains(objective.network, **WAY).vectors_of(batch, torch.zeros(1))


def test_phases_and_terms() -> None:
    """Five steps of the discriminator to one of the generator; eq. 5 and eq. 6 with weights 1, 10 and 10."""
    torch.manual_seed(0)
    objective = Domains(StarGAN(Config(classes=2, **SMALL)), **WAY)
    assert [len(objective.phases(step)) for step in range(10)] == [1, 1, 1, 1, 2] * 2
    batch = batch_of(objective.network, [[0], [1]])
    first = objective(batch, at("d"))
    assert list(first) == ["d/real", "d/fake", "d/penalty", "d/classes"]
    sum(first.values()).backward()
    assert all(p.grad is None for p in objective.network.parameters())
    torch.manual_seed(5)
    terms = objective(batch, at("g"))
    torch.manual_seed(5)
    real = batch.images.pixels
    vectors, sets = objective.vectors_of(batch, real)
    wanted = objective.wanted_of(vectors, sets)
    made = objective.network(real, wanted)
    torch.testing.assert_close(terms["g/cycle"], 10 * (real - objective.network(made, vectors)).abs().mean())
    torch.testing.assert_close(terms["g/fool"], -objective.discriminator(made).source.mean())


def test_the_paper_s_discriminator() -> None:
    """Table 5: six k4s2 convolutions of width 64..2048, 2x2 scores and one number per domain for 128x128 pixels."""
    with torch.device("meta"):
        judged = Discriminator(Config(), 64, 6)(torch.empty(1, 3, 128, 128))
    assert judged.source.shape == (1, 1, 2, 2) and judged.classes.shape == (1, 5)


def test_domains_at_prediction() -> None:
    torch.manual_seed(0)
    one, two = (create("stargan/tiny", target=k) for k in (0, 2))
    two.load_state_dict(one.state_dict())
    picture = torch.randint(256, (32, 32, 3), dtype=torch.uint8)
    a, b = (model.predict(picture)[0].pixels for model in (one, two))
    assert a.shape == (32, 32, 3) and not torch.equal(a, b)
    pixels = prepare([Picture(picture)], one.prepare).pixels
    torch.testing.assert_close(one(pixels, torch.tensor([2])), two(pixels))


def test_there_and_back_and_the_right_answers() -> None:
    """A network that changes nothing loses nothing on the way back, and is as wrong as a copy is."""

    class Copy(StarGAN):
        def forward(self, pixels: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
            return pixels

    data = open_data("tints", "test", count=9)
    values, protocol = evaluate(Copy(Config(classes=3, size=32, width=4, blocks=1)), data)
    one, two = (data[0].picture.pixels, data.answer(0, 1).pixels)
    copy = -10 * ((one.float() - two.float()) / 255).square().mean().log10()
    assert values["cycle"] == pytest.approx(60) and abs(values["PSNR"] - float(copy)) < 8 and protocol["pictures"] == 9
    assert set(evaluate(Copy(Config(classes=10, size=28, width=4, blocks=1, channels=1)), open_data("digits", "val"))[0]) == {
        "cycle"
    }
    with pytest.raises(DataError, match="a domain is needed, found NoneType"):
        evaluate(Copy(Config(classes=3, size=32, width=4, blocks=1)), open_data("patches", "test", count=2))


@pytest.mark.parametrize(
    ("words", "make"),
    [
        (r"sets=\(2, 2\)", lambda: Config(classes=5, sets=(2, 2))),
        ("size must be a multiple of 4", lambda: Config(size=18)),
        ("target must be a domain in 0..4, found 7", lambda: Config(target=7)),
        ("2.depth at most the size 16", lambda: Domains(StarGAN(Config(**SMALL)), depth=6)),
        ("attributes=True is of one label set", lambda: Domains(StarGAN(Config(5, (3, 2), **SMALL)), attributes=True, **WAY)),
        (r"domains are 0..4, found \[9\]", lambda: StarGAN(Config(**SMALL))(torch.rand(1, 3, 16, 16), torch.tensor([9]))),
        (r"need labels of shape \(1, 5\)", lambda: StarGAN(Config(**SMALL))(torch.rand(1, 3, 16, 16), torch.rand(1, 4))),
    ],
)
def test_bad_settings(words: str, make) -> None:
    with pytest.raises(UsageError, match=words):
        make()
