"""Record the schedulers of diffusers (Apache-2.0) step by step: python tools/references/samplers.py > tests/diffusion/samplers.json

Their betas and their cumulative products are kept in float64, so that what is compared are formulas, not roundings; all chance is given
in. The network is a formula (`answer`) that the test repeats.
"""

import json

import diffusers
import torch
import torchvision_shim  # noqa: F401 before diffusers
from diffusers.schedulers import scheduling_ddim, scheduling_ddpm
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from opticus.parity.fill import pixels_of

SHAPE = (2, 3, 1, 1)
SCHEDULES = {
    "linear": ("linear", 1e-4, 0.02),
    "scaled-linear": ("scaled_linear", 0.00085, 0.012),
    "cosine": ("squaredcos_cap_v2", None, None),
}
KINDS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


def answer(x, time):
    return 0.8 * torch.sin(1.3 * x + time / 300) + 0.1 * x


class Given:
    """Stands for torch's generator: formula numbers, one block after another."""

    def __init__(self):
        self.count = 100

    def __call__(self, shape, generator=None, device=None, dtype=None):
        self.count += 1
        return pixels_of(list(shape), self.count).double()


def settings(schedule, **more):
    name, start, end = SCHEDULES[schedule]
    return {"beta_schedule": name, **({} if start is None else {"beta_start": start, "beta_end": end}), **more}


def exact(scheduler):
    """The cumulative products of the scheduler's own betas, in float64."""
    scheduler.alphas_cumprod = (1 - scheduler.betas.double()).cumprod(0)
    return scheduler


def trajectory(scheduler, steps, x, variance_preserving=True, **options):
    scheduler.set_timesteps(steps)
    x, states, sigmas = x.double(), [], getattr(scheduler, "sigmas", None)
    for i, time in enumerate(scheduler.timesteps):
        given = scheduler.scale_model_input(x, time) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(answer(given.double(), float(time)), time, x, **options).prev_sample.double()
        scale = 1.0 if variance_preserving else float((sigmas[i + 1].double() ** 2 + 1) ** 0.5)
        states.append([round(value, 10) for value in (x / scale).flatten().tolist()])
    return {"times": [round(float(t), 5) for t in scheduler.timesteps], "states": states}


def case(name, schedule="linear", predicts="eps", steps=10, spacing="leading", eta=0.0, variance="small", clip=None):
    given = Given()
    scheduling_ddpm.randn_tensor = scheduling_ddim.randn_tensor = given
    start, options, vp = pixels_of(list(SHAPE), 1).double(), {}, True
    limits = {"clip_sample": clip is not None, "clip_sample_range": clip or 1.0}
    both = settings(schedule, prediction_type=KINDS[predicts], timestep_spacing=spacing)
    if name == "ddpm":
        scheduler = exact(DDPMScheduler(**both, variance_type=f"fixed_{variance}", **limits))
    elif name == "ddim":
        scheduler, options = exact(DDIMScheduler(**both, set_alpha_to_one=True, **limits)), {"eta": eta}
    elif name == "euler":
        scheduler, vp = exact(EulerDiscreteScheduler(**both)), False
        scheduler.set_timesteps(steps)
        start = start * float(scheduler.sigmas[0])
    else:
        scheduler = exact(DPMSolverMultistepScheduler(**both))
    return {
        "sampler": name, "schedule": schedule, "predicts": predicts, "steps": steps, "spacing": spacing, "eta": eta,
        "variance": variance, "clip": clip, **trajectory(scheduler, steps, start, vp, **options),
    }  # fmt: skip


def flow(steps, shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    return {"steps": steps, "shift": shift, **trajectory(scheduler, steps, pixels_of(list(SHAPE), 1).double())}


def main():
    products = {}
    for name in SCHEDULES:
        bars = DDPMScheduler(**settings(name)).alphas_cumprod
        products[name] = [float(bars[i]) for i in (0, 1, 250, 500, 750, 998, 999)]
    cases = [
        case("ddpm"),
        case("ddpm", variance="large", predicts="v", clip=1.0),
        case("ddpm", "cosine", "x0", steps=7),
        case("ddim", eta=0.0, steps=20),
        case("ddim", "scaled-linear", "v", eta=1.0, spacing="trailing"),
        case("ddim", "cosine", "x0", eta=0.3, clip=0.9, steps=8, spacing="trailing"),
        case("ddim", eta=0.5, predicts="eps", clip=1.0),
        case("euler", spacing="linspace"),
        case("euler", "scaled-linear", "v", spacing="linspace", steps=13),
        case("euler", "scaled-linear", "eps", spacing="trailing", steps=13),
        case("dpm++", spacing="linspace"),
        case("dpm++", "scaled-linear", "v", spacing="linspace", steps=20),
        case("dpm++", "linear", "x0", spacing="leading", steps=5),
        case("dpm++", "scaled-linear", "eps", spacing="trailing", steps=1),
    ]
    print(
        json.dumps({"diffusers": diffusers.__version__, "products": products, "cases": cases, "flow": [flow(6, 1.0), flow(9, 3.0)]})
    )


if __name__ == "__main__":
    main()
