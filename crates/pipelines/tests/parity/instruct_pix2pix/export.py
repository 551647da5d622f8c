"""Editing by instructions with the tiny models of text_to_image and stable_diffusion_xl, whose UNets see 8 channels here."""

import json
import warnings

import diffusers
import fixture
import numpy as np
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline, StableDiffusionXLInstructPix2PixPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel

warnings.filterwarnings("ignore")
# diffusers 0.42.1 looks for `text_model`, which transformers 5 no longer has.
CLIPTextModel.text_model = property(lambda self: self)
here = fixture.folder()
folders = {"xl": here.parent / "stable_diffusion_xl/base", "sd1": here.parent / "text_to_image/sd1"}
random = np.random.default_rng(7)
tensors = {}


def picture(width, height):
    """Blobs of colour with noise on them."""
    coarse = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(smooth + random.integers(-40, 41, smooth.shape), 0, 255).astype(np.uint8)


for model, folder in folders.items():
    config = UNet2DConditionModel.load_config(folder, subfolder="unet")
    fixture.randomize(UNet2DConditionModel.from_config(config, in_channels=8), seed=9).save_pretrained(here / f"{model}_unet")

for name, case in json.loads((here / "cases.json").read_text()).items():
    model = case["model"]
    unet = UNet2DConditionModel.from_pretrained(here / f"{model}_unet")
    if model == "xl":
        pipeline = StableDiffusionXLInstructPix2PixPipeline.from_pretrained(
            folders[model], unet=unet, add_watermarker=False, is_cosxl_edit=case.get("cosxl", False)
        )
    else:
        pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(
            folders[model], unet=unet, safety_checker=None, requires_safety_checker=False
        )
    pipeline.set_progress_bar_config(disable=True)
    if "scheduler" in case:
        pipeline.scheduler = getattr(diffusers, case["scheduler"]).from_config(pipeline.scheduler.config)
    kwargs = {key: case[key] for key in ("eta", "num_images_per_prompt", "guidance_rescale", "denoising_end") if key in case}
    kwargs["guidance_scale"] = case.get("guidance_scale", 4.0)
    kwargs["image_guidance_scale"] = case.get("image_guidance_scale", 1.5)
    kwargs["num_inference_steps"] = 5
    kwargs["prompt"] = case.get("prompts", ["a large red circle on a blue background"])
    if "negative_prompts" in case:
        kwargs["negative_prompt"] = case["negative_prompts"]
    if "size" in case:
        kwargs["width"], kwargs["height"] = case["size"]
    if case.get("latents"):
        kwargs["latents"] = tensors[f"{name}.start"] = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(12))
    pixels = np.stack([picture(*case.get("image", [32, 32])) for _ in range(case.get("images", 1))])
    tensors[f"{name}.image"] = torch.from_numpy(pixels)
    pictures = [Image.fromarray(one) for one in pixels]
    kwargs["image"] = pictures if len(pictures) > 1 else pictures[0]
    seeds = case.get("seeds", [0])

    def paint(output_type):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipeline(**kwargs, generator=generators if len(seeds) > 1 else generators[0], output_type=output_type).images

    tensors[f"{name}.latents"] = paint("latent")
    tensors[f"{name}.pictures"] = torch.from_numpy(np.stack([np.array(one) for one in paint("pil")]))

fixture.save(tensors)
