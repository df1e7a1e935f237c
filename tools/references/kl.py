"""The KL autoencoder of CompVis/latent-diffusion (MIT), and AutoencoderKL of diffusers (Apache-2.0), which reads the same weights."""

import latent_diffusion as ldm
import torch
from diffusers import AutoencoderKL

from opticus.parity.fill import pixels_of

PAPER, EXTENDS = "kl", "vqgan"
PICTURES = [[16, 24, 1], [16, 24, 2]]
# models/first_stage_models/*/config.yaml
PUBLISHED = {
    "f4": {"multiples": (1, 2, 4), "attention": (), "latent": 3},
    "f8": {"multiples": (1, 2, 4, 4), "attention": (), "latent": 4},
    "f16": {"multiples": (1, 1, 2, 2, 4), "attention": (4,), "latent": 16},
    "f32": {"multiples": (1, 1, 2, 2, 4, 4), "attention": (4, 5), "latent": 64},
}
reference = ldm.reference


def config(multiples, attention, latent, channels=3, blocks=1, width=32, groups=32):
    return {
        "size": 0, "channels": channels, "width": width, "multiples": list(multiples), "blocks": blocks,
        "attention": list(attention), "groups": groups, "latent": latent,
    }  # fmt: skip


def authors(multiples, attention, latent, channels=3, blocks=1, width=32, **more):
    return ldm.kl_model(
        channels=channels, width=width, multiples=multiples, blocks=blocks, attention=attention, latent=latent, **more
    )  # fmt: skip


def theirs(name, form, prefix, shape, pictures=PICTURES, extra=()):
    model, state = ldm.filled(authors(**shape), rename=lambda key: prefix + key)
    with torch.no_grad():
        out, posterior = model(ldm.pixels(pictures), sample_posterior=False)
    state |= {key: [3] for key in extra}
    settings = config(**shape)
    moments = {"out.mean": posterior.mean, "out.logvar": posterior.logvar}
    seed = {"0": {"shape": [1, shape.get("channels", 3), 16, 24], "seed": 5}}
    with torch.no_grad():
        given = model.encode(pixels_of([1, shape.get("channels", 3), 16, 24], 5))
        moments = {"out.mean": given.mean, "out.logvar": given.logvar}
    return [
        ldm.case(name, form, "tiny", settings, state, pictures, {"out": out}),
        ldm.called(f"{name}, posterior", form, settings, state, "posterior", seed, moments),
    ]


def diffusers(name, form, shape, rename=str, pictures=PICTURES):
    shape = {"channels": 3, "blocks": 1, "width": 16, "groups": 8, **shape}
    model, state = ldm.filled(AutoencoderKL(**ldm.diffusers_config(**shape)), rename=rename)
    with torch.no_grad():
        out = model(ldm.pixels(pictures)).sample
    return ldm.case(name, form, "tiny", config(**shape), state, pictures, {"out": out})


def loss():
    """The authors' loss with its discriminator in the game; one picture at a time, and the adaptive weight of both."""
    shape = {"multiples": (1, 2, 2), "attention": (), "latent": 2, "channels": 1}
    judge = ldm.KL_LOSS.LPIPSWithDiscriminator(
        disc_start=0, kl_weight=1e-3, disc_weight=0.5, disc_num_layers=2, disc_in_channels=1, perceptual_weight=0.0
    )
    model, state = ldm.filled(authors(**shape, loss=judge))
    pixels, noise = pixels_of([2, 1, 16, 16], 3), pixels_of([2, 2, 4, 4], 4)

    def terms(pixels, noise):
        posterior = model.encode(pixels)
        found = model.decode(posterior.mean + posterior.std * noise)
        return model.loss(pixels, found, posterior, 0, 1, last_layer=model.get_last_layer())[1]

    model.loss.logvar.data.zero_()  # the reconstruction's variance is not trained
    each = [terms(pixels[i : i + 1], noise[i : i + 1]) for i in range(2)]
    column = {key: torch.stack([one[f"train/{key}"].detach() for one in each]) for key in ("nll_loss", "kl_loss", "g_loss")}
    adaptive = terms(pixels, noise)["train/d_weight"] / 0.5
    outputs = {"out.distance": column["nll_loss"], "out.penalty": column["kl_loss"], "out.fooled": adaptive * column["g_loss"]}
    tensors = {"0": {"shape": [2, 1, 16, 16], "seed": 3}, "1": {"shape": [2, 2, 4, 4], "seed": 4}}
    options = {"penalty": 1e-3, "start": 0, "layers": 2}
    case = ldm.called("loss", "ldm", config(**shape), state, "losses", tensors, outputs)
    return {**case, "objective": {"options": options}}


def tiny():
    small = {"multiples": (1, 2, 2), "attention": (1,), "latent": 3, "blocks": 2}
    f16 = {"multiples": (1, 1, 1, 2, 2), "attention": (4,), "latent": 4}
    whole = ("model.diffusion_model.out.0.bias", "cond_stage_model.transformer.text_model.final_layer_norm.bias")
    f8 = {"multiples": (1, 2, 2, 2), "attention": (), "latent": 4}
    return [
        *theirs("levels with attention", "ldm", "", small),
        *theirs("whole file", "stable-diffusion", "first_stage_model.", {"multiples": (1, 2), "attention": (), "latent": 2}, extra=whole),
        diffusers("diffusers f4", "diffusers-f4", {"multiples": (1, 2, 2), "attention": (), "latent": 3}),
        diffusers("diffusers f8", "diffusers-f8", f8),
        diffusers("diffusers f8, old names", "diffusers-f8", f8, ldm.old_names),
        diffusers("diffusers f16", "diffusers-f16", f16, pictures=[[32, 16, 1], [32, 16, 2]]),
        loss(),
    ]  # fmt: skip


def size(shape):
    return {"channels": 3, "width": 128, "blocks": 2, **shape}


def manifests():
    with torch.device("meta"):
        own = {variant: ldm.shapes(authors(**size(shape))) for variant, shape in PUBLISHED.items()}
        f4, f8 = (ldm.shapes(AutoencoderKL(**ldm.diffusers_config(**size(PUBLISHED[v])))) for v in ("f4", "f8"))
        old = {ldm.old_names(key): shape for key, shape in f8.items()}
    own["sdxl"] = own["f8"]
    return {"ldm": own, "diffusers-f4": {"f4": f4}, "diffusers-f8": {"f8": f8, "sdxl": f8}, "diffusers-f8-old": {"f8": old}}


def parameters():
    return {v: sum(torch.Size(shape).numel() for shape in keys.values()) for v, keys in manifests()["ldm"].items()}


def full():
    pictures = [[64, 96, 1]]
    model, state = ldm.filled(AutoencoderKL(**ldm.diffusers_config(**size(PUBLISHED["f8"]))), torch.float32)
    with torch.no_grad():
        out = model(ldm.pixels(pictures, dtype=torch.float32)).sample
    yield ldm.case("f8", "diffusers-f8", "f8", {}, state, pictures, {"out": out})
    for variant in ("f8", "f16"):
        model, state = ldm.filled(authors(**size(PUBLISHED[variant])), torch.float32)
        with torch.no_grad():
            out = model(ldm.pixels(pictures, dtype=torch.float32), sample_posterior=False)[0]
        yield ldm.case(f"{variant} of the authors", "ldm", variant, {}, state, pictures, {"out": out})
