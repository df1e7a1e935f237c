"""SRResNet and SRGAN: what the paper's figure 4 and equations say, beyond what every paper is tested for."""

import pytest
import torch
from torch import nn

from opticus import zoo
from opticus.losses.pictures import targets_of
from opticus.models.generative.srgan import FEATURES, SRGAN, Config, Discriminator, SRResNet
from opticus.recipes.srgan import vgg54
from opticus.structures import Batch, CapabilityError, Images, Picture, Prepare, Progress, UsageError
from opticus.transforms.prepare import prepare
from opticus.verbs.models import create, load

SMALL = {"blocks": 1, "width": 8}


def batch_of(scale: int = 2, count: int = 2, side: int = 12, seed: int = 0) -> Batch:
    maker = torch.Generator().manual_seed(seed)
    small = [torch.randint(256, (side, side, 3), generator=maker, dtype=torch.uint8) for _ in range(count)]
    large = [one.repeat_interleave(scale, 0).repeat_interleave(scale, 1) for one in small]
    images = prepare([Picture(one) for one in small], Prepare(resize="none", mean=(0.0,) * 3, std=(1.0,) * 3))
    return Batch(images, tuple(Picture(one) for one in large), tuple(f"pair {i}" for i in range(count)))


def at(phase: str) -> Progress:
    return Progress(0, 0, 1, 1, phase)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_it_enlarges_by_its_scale(scale: int) -> None:
    network = SRResNet(Config(scale=scale, **SMALL)).eval()
    assert network(torch.rand(1, 3, 5, 7)).shape == (1, 3, 5 * scale, 7 * scale)
    assert network.scale == scale and len(network.upsampling) == scale.bit_length() - 1


def test_the_paper_s_generator() -> None:
    """Figure 4: 16 blocks of k3n64, k9n64 in front, k9n3 at the end, two sub-pixel layers k3n256."""
    network = zoo.meta("srgan/x4")
    assert isinstance(network, SRResNet) and len(network.blocks) == 16
    assert (network.first.kernel_size, network.first.out_channels) == ((9, 9), 64)
    assert (network.final.kernel_size, network.final.out_channels) == ((9, 9), 3)
    assert [m.out_channels for m in network.upsampling.modules() if isinstance(m, nn.Conv2d)] == [256, 256]


def test_the_paper_s_discriminator() -> None:
    """Figure 4: k3 with n64s1 n64s2 n128s1 n128s2 n256s1 n256s2 n512s1 n512s2, then 1024 and 1; no norm after the first."""
    discriminator = Discriminator(3, 64, 1024, 6)
    convs = [m for m in discriminator.features if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convs] == [64, 64, 128, 128, 256, 256, 512, 512]
    assert [c.stride[0] for c in convs] == [1, 2] * 4
    assert sum(isinstance(m, nn.BatchNorm2d) for m in discriminator.features) == 7
    assert [m.out_features for m in discriminator.classifier if isinstance(m, nn.Linear)] == [1024, 1]
    maps = discriminator.features(torch.rand(1, 3, 96, 96))
    assert maps.shape == (1, 512, 6, 6) and torch.equal(discriminator.pool(maps), maps)


def test_content_is_the_squared_error_of_pixels_or_of_features() -> None:
    network = SRResNet(Config(scale=2, **SMALL))
    batch = batch_of()
    made, wanted = network(batch.images.pixels), targets_of(batch, network.produces)
    plain = SRGAN(network)(batch, at("all"))
    assert list(plain) == ["content"]
    torch.testing.assert_close(plain["content"], (made - wanted).square().mean())

    seen: list[torch.Tensor] = []

    def features(pixels: torch.Tensor) -> list[torch.Tensor]:
        seen.append(pixels)
        return [pixels.mean((2, 3)), 2 * pixels[:, :1]]

    term = SRGAN(network, features=features)(batch, at("all"))["content"]
    mean, std = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    torch.testing.assert_close(seen[1], (wanted - mean) / std)
    one, two = (made - wanted) / std, 2 * ((made - wanted) / std)[:, :1]
    torch.testing.assert_close(term, FEATURES * (one.mean((2, 3)).square().mean() + two.square().mean()))


def test_a_network_of_features_is_neither_trained_nor_saved() -> None:
    features = nn.Conv2d(3, 4, 3)
    objective = SRGAN(SRResNet(Config(scale=2, **SMALL)), features=features, adversarial=1e-3, width=4, hidden=8, pool=1)
    assert not any("features." in name and "discriminator" not in name for name in objective.state_dict())
    sum(objective(batch_of(), at("g")).values()).backward()
    assert features.weight.grad is None and not features.weight.requires_grad
    assert objective.network.final.weight.grad.abs().max() > 0


def test_the_maps_of_a_vgg() -> None:
    """phi_5,4: the fourth convolution after the fourth pooling, a sixteenth of the size."""
    vgg = create("vgg/19", classes=0)
    look = vgg54(vgg)
    assert look(torch.rand(1, 3, 32, 32)).shape == (1, 512, 2, 2) and not any(p.requires_grad for p in vgg.parameters())
    network = SRResNet(Config(scale=2, **SMALL))
    assert float(SRGAN(network, features=look)(batch_of(side=16), at("all"))["content"].detach()) > 0
    with pytest.raises(CapabilityError, match="five feature maps is needed, such as vgg/19, found Linear"):
        vgg54(nn.Linear(2, 2))


def test_the_game() -> None:
    """The discriminator's phase leaves the generator alone; the generator's adversarial term is 1e-3 times -log D."""
    torch.manual_seed(0)
    objective = SRGAN(SRResNet(Config(scale=2, **SMALL)), adversarial=1e-3, width=4, hidden=8, pool=1)
    batch = batch_of()
    assert objective.phases(0) == ("d", "g") and SRGAN(objective.network).phases(0) == ("all",)
    sum(objective(batch, at("d")).values()).backward()
    assert all(p.grad is None for p in objective.network.parameters())
    assert all(p.grad is not None for p in objective.discriminator.parameters())
    objective.eval()
    terms, (_, fake) = objective(batch, at("g")), objective.realness(batch)
    torch.testing.assert_close(terms["g/fool"], 1e-3 * torch.nn.functional.softplus(-fake).mean())
    assert set(objective.figures()) == {"logit_real", "logit_fake"}


def test_padding_is_cut_away() -> None:
    network = SRResNet(Config(scale=2, **SMALL)).eval()
    one, two = (torch.randint(256, size, dtype=torch.uint8) for size in ((9, 11, 3), (6, 5, 3)))
    images = prepare([Picture(one), Picture(two)], network.prepare)
    assert isinstance(images, Images) and images.valid is not None
    found = network.results(network(images.pixels, images.valid), images)
    assert [picture.size for picture in found] == [(18, 22), (12, 10)]


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ("scale must be 2, 4, 8", {"scale": 3}),
        ("blocks, width and channels", {"width": 0}),
        ("ends must be one of", {"ends": "relu"}),
    ],
)
def test_bad_settings(words: str, changes: dict) -> None:
    with pytest.raises(UsageError, match=words):
        Config(**changes)


def test_bad_objectives_and_targets() -> None:
    network = SRResNet(Config(scale=2, **SMALL))
    with pytest.raises(UsageError, match="must not be negative"):
        SRGAN(network, adversarial=-1)
    with pytest.raises(UsageError, match=r"pair 0 is answered by .24, 24. pixels, but its target has .48, 48."):
        SRGAN(network)(batch_of(scale=4), at("all"))
    with pytest.raises(UsageError, match="no discriminator"):
        SRGAN(network).realness(batch_of())


def test_a_published_layout_is_recognised(tmp_path) -> None:
    """A file in Lornatang's layout (weights under "state_dict") loads into the variant that it is named with, and predicts."""
    torch.manual_seed(0)
    model = create("srgan/x2", blocks=1, width=8)
    names = {"first": "conv1.0", "prelu": "conv1.1", "conv": "conv2.0", "bn": "conv2.1", "final": "conv3"}
    parts = {"conv1": "0", "bn1": "1", "prelu": "2", "conv2": "3", "bn2": "4"}
    state = {}
    for key, value in model.state_dict().items():
        head, *rest = key.split(".")
        if head == "blocks":
            key = f"trunk.{rest[0]}.rcb.{parts[rest[1]]}.{rest[2]}"
        elif head == "upsampling":
            key = f"upsampling.{rest[0]}.upsample_block.{ {'conv': 0, 'prelu': 2}[rest[1]] }.{rest[2]}"
        else:
            key = ".".join([names[head], *rest])
        state[key] = value
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "SRResNet_x2.pth.tar")
    again = load("srgan/x2", tmp_path / "SRResNet_x2.pth.tar", blocks=1, width=8, quiet=True)
    picture = torch.randint(256, (10, 13, 3), dtype=torch.uint8)
    one, two = model.predict(picture)[0], again.predict(picture)[0]
    assert one.pixels.shape == (20, 26, 3) and torch.equal(one.pixels, two.pixels)
