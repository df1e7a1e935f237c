"""VQGAN of CompVis/taming-transformers and latent-diffusion (MIT), and VQModel of diffusers (Apache-2.0), which reads the same weights."""

import latent_diffusion as ldm
import torch
from diffusers import VQModel

from opticus.parity.fill import pixels_of

PAPER = "vqgan"
PICTURES = [[16, 24, 1], [16, 24, 2]]
F16 = {"multiples": (1, 1, 2, 2, 4), "attention": (4,)}
F8 = {"multiples": (1, 2, 2, 4), "attention": (3,), "latent": 4}
F4 = {"multiples": (1, 2, 4), "attention": (), "latent": 3}
# configs/imagenet_vqgan.yaml of taming-transformers, models/first_stage_models/*/config.yaml of latent-diffusion
PUBLISHED = {
    "f16-1024": {**F16, "latent": 256, "codes": 1024},
    "f16-16384": {**F16, "latent": 256, "codes": 16384},
    "vq-f4": {**F4, "codes": 8192},
    "vq-f4-noattn": {**F4, "codes": 8192, "middle": False},
    "vq-f8": {**F8, "codes": 16384},
    "vq-f8-n256": {**F8, "codes": 256},
    "vq-f16": {**F16, "latent": 8, "codes": 16384},
}
reference = ldm.reference


def config(multiples, attention, latent, codes, channels=3, blocks=1, width=32, groups=32, middle=True):
    return {
        "size": 0, "channels": channels, "width": width, "multiples": list(multiples), "blocks": blocks, "middle": middle,
        "attention": list(attention), "groups": groups, "latent": latent, "codes": codes,
    }  # fmt: skip


def authors(multiples, attention, latent, codes, channels=3, blocks=1, width=32, middle=True, loss=None):
    return ldm.vq_model(
        codes, loss, channels=channels, width=width, multiples=multiples, blocks=blocks, attention=attention, latent=latent,
        attn_type="vanilla" if middle else "none",
    )  # fmt: skip


def theirs(name, shape):
    """The reconstruction, and the codes of another picture and what is made of given ones."""
    model, state = ldm.filled(authors(**shape))
    settings, given, codes = config(**shape), pixels_of([1, 3, 16, 24], 5), torch.arange(24).reshape(1, 4, 6) % shape["codes"]
    with torch.no_grad():
        out = model(ldm.pixels(PICTURES))[0]
        found = model.encode(given)[2][2].reshape(1, 4, 6)
        latents = model.encode_to_prequant(given)
        drawn = model.decode(model.quantize.get_codebook_entry(codes.flatten(), (1, 4, 6, shape["latent"])))
    one = {"0": {"shape": [1, 3, 16, 24], "seed": 5}}
    return [
        ldm.case(name, "taming", "tiny", settings, state, PICTURES, {"out": out}),
        ldm.called(f"{name}, encode", "taming", settings, state, "encode", one, {"out": latents}),
        ldm.called(f"{name}, codes", "taming", settings, state, "codes", one, {"out": found}),
        ldm.called(
            f"{name}, from codes", "taming", settings, state, "decode_codes", {"0": {"values": codes.tolist()}}, {"out": drawn}
        ),
    ]


def diffusers_model(multiples, attention, latent, codes, channels=3, blocks=1, width=16, groups=8, middle=True):
    shape = ldm.diffusers_config(channels, width, multiples, blocks, latent, groups, attention)
    return VQModel(**shape, num_vq_embeddings=codes, mid_block_add_attention=middle)


def diffusers(name, form, shape, pictures=PICTURES):
    shape = {"width": 16, "groups": 8, "codes": 12, **shape}
    model, state = ldm.filled(diffusers_model(**shape))
    with torch.no_grad():
        out = model(ldm.pixels(pictures)).sample
    return ldm.case(name, form, "tiny", config(**shape), state, pictures, {"out": out})


def losses(name, legacy):
    """The authors' loss with its discriminator in the game; one picture at a time, and the adaptive weight of both."""
    shape = {"multiples": (1, 2, 2), "attention": (), "latent": 2, "channels": 1, "codes": 12}
    judge = ldm.VQ_LOSS.VQLPIPSWithDiscriminator(
        disc_start=0, disc_weight=0.8, disc_num_layers=2, disc_in_channels=1, perceptual_weight=0.0, disc_ndf=16
    )
    model, state = ldm.filled(authors(**shape, loss=judge))
    model.quantize.legacy = legacy
    pixels = pixels_of([2, 1, 16, 16], 3)

    def terms(pixels):
        found, codebook = model(pixels)
        return model.loss(codebook, pixels, found, 0, 1, last_layer=model.get_last_layer())[1]

    each = [terms(pixels[i : i + 1]) for i in range(2)]
    column = {key: torch.stack([one[f"train/{key}"].detach() for one in each]) for key in ("nll_loss", "quant_loss", "g_loss")}
    adaptive = terms(pixels)["train/d_weight"] / 0.8
    outputs = {"out.distance": column["nll_loss"], "out.penalty": column["quant_loss"], "out.fooled": adaptive * column["g_loss"]}
    options = {"start": 0, "layers": 2, "filters": 16, "legacy": legacy}
    tensors = {"0": {"shape": [2, 1, 16, 16], "seed": 3}}
    generator = ldm.called(name, "taming", config(**shape), state, "losses", tensors, outputs)
    fake = pixels_of([2, 1, 16, 16], 4)
    with torch.no_grad():
        scores = [model.loss.discriminator(x) for x in (pixels, fake)]
        sure = torch.full_like(scores[0][:1], 10)  # a score that costs nothing
        real = torch.stack([ldm.VQ_LOSS.hinge_d_loss(s[None], -sure) for s in scores[0]])
        lost = torch.stack([ldm.VQ_LOSS.hinge_d_loss(sure, s[None]) for s in scores[1]])
    pair = {**tensors, "1": {"shape": [2, 1, 16, 16], "seed": 4}}
    judged = ldm.called(f"{name}, opponent", "taming", config(**shape), state, "judged", pair, {"out.0": real, "out.1": lost})
    return [{**case, "objective": {"options": options}} for case in (generator, judged)]


def tiny():
    return [
        *theirs("levels with attention", {"multiples": (1, 2, 2), "attention": (1,), "latent": 4, "codes": 20, "blocks": 2}),
        *theirs("no attention", {"multiples": (1, 2, 2), "attention": (), "latent": 3, "codes": 16, "middle": False})[:1],
        diffusers("diffusers f4", "diffusers-f4", {"multiples": (1, 2, 2), "attention": (), "latent": 3}),
        diffusers("diffusers f8", "diffusers-f8", {"multiples": (1, 2, 2, 2), "attention": (3,), "latent": 4}),
        diffusers(
            "diffusers f16",
            "diffusers-f16",
            {"multiples": (1, 1, 1, 2, 2), "attention": (4,), "latent": 4},
            pictures=[[32, 16, 1], [32, 16, 2]],
        ),
        *losses("loss", True),
        losses("loss, beta on the commitment", False)[0],
    ]


def size(shape):
    return {"channels": 3, "width": 128, "blocks": 2, **shape}


def manifests():
    with torch.device("meta"):
        own = {variant: ldm.shapes(authors(**size(shape))) for variant, shape in PUBLISHED.items()}
        f4 = ldm.shapes(diffusers_model(**{**size(PUBLISHED["vq-f4"]), "groups": 32}))
    return {"taming": own, "diffusers-f4": {"vq-f4": f4}}


def parameters():
    return {v: sum(torch.Size(shape).numel() for shape in keys.values()) for v, keys in manifests()["taming"].items()}


def full():
    pictures = [[64, 96, 1]]
    for variant in ("f16-1024", "vq-f4"):
        model, state = ldm.filled(authors(**size(PUBLISHED[variant])), torch.float32)
        with torch.no_grad():
            out = model(ldm.pixels(pictures, dtype=torch.float32))[0]
        yield ldm.case(variant, "taming", variant, {}, state, pictures, {"out": out})
    model, state = ldm.filled(diffusers_model(**{**size(PUBLISHED["vq-f4"]), "groups": 32}), torch.float32)
    with torch.no_grad():
        out = model(ldm.pixels(pictures, dtype=torch.float32)).sample
    yield ldm.case("vq-f4 of diffusers", "diffusers-f4", "vq-f4", {}, state, pictures, {"out": out})
