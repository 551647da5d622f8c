"""Pictures of the small model by the reference library: one for each name of a scheduler, one for each other argument."""

import pathlib

import diffusers
import fixture
import numpy as np
import torch

PROMPT = "a large green star on the left on a black background"
SHAPES = pathlib.Path("../../../assets/shapes")

# Which scheduler each name of the command line stands for.
DPM = "DPMSolverMultistepScheduler"
KARRAS = {"use_karras_sigmas": True}
EXPONENTIAL = {"use_exponential_sigmas": True}
SDE = {"algorithm_type": "sde-dpmsolver++"}
THIRD_ORDER = {"solver_order": 3}
SCHEDULERS = {
    "ddpm": ("DDPMScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-karras": ("EulerDiscreteScheduler", KARRAS),
    "euler-exponential": ("EulerDiscreteScheduler", EXPONENTIAL),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "dpm": (DPM, {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    "dpmpp-2m": (DPM, {}),
    "dpmpp-2m-karras": (DPM, KARRAS),
    "dpmpp-2m-exponential": (DPM, EXPONENTIAL),
    "dpmpp-2m-sde": (DPM, SDE),
    "dpmpp-2m-sde-karras": (DPM, SDE | KARRAS),
    "dpmpp-3m-sde": (DPM, SDE | THIRD_ORDER),
    "dpmpp-3m-sde-karras": (DPM, SDE | THIRD_ORDER | KARRAS),
    "dpmpp-sde": (DPM, SDE),
    "dpmpp-sde-karras": (DPM, SDE | KARRAS),
}

# The flags of the command line, as the reference's arguments.
ARGUMENTS = {
    "--guidance-scale 1": {"guidance_scale": 1.0},
    "--guidance-rescale 0.7": {"guidance_rescale": 0.7},
    "--eta 1": {"eta": 1.0},
    "--clip-skip 1": {"clip_skip": 1},
    "--negative-prompt white": {"negative_prompt": "white"},
    "--width 96 --height 48": {"width": 96, "height": 48},
}

pipeline = diffusers.StableDiffusionPipeline.from_pretrained(SHAPES, dtype=torch.float32)
pipeline.set_progress_bar_config(disable=True)
# diffusers 0.42.1 looks for the final layer norm where transformers 5 no longer has it.
object.__setattr__(pipeline.text_encoder, "text_model", pipeline.text_encoder)
own_config = pipeline.scheduler.config


def paint(**arguments):
    generator = torch.Generator().manual_seed(3)
    picture = pipeline(PROMPT, generator=generator, **{"num_inference_steps": 8, **arguments}).images[0]
    return torch.from_numpy(np.array(picture))


pictures = {}
for name, (class_name, overrides) in SCHEDULERS.items():
    pipeline.scheduler = getattr(diffusers, class_name).from_config(own_config, **overrides)
    pictures[f"--scheduler {name}"] = paint()
pipeline.scheduler = diffusers.DDIMScheduler.from_config(own_config)
for flags, arguments in ARGUMENTS.items():
    pictures[flags] = paint(**arguments)
fixture.save(pictures)
