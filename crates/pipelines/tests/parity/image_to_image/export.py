"""Image to image with the tiny models of text_to_image, and pictures that Pillow resized."""

import json
import warnings

import diffusers
import fixture
import numpy as np
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image
from transformers import CLIPTextModel

warnings.filterwarnings("ignore")
# diffusers 0.42.1 looks for `text_model`, which transformers 5 no longer has.
CLIPTextModel.text_model = property(lambda self: self)
here = fixture.folder()
models = here.parent / "text_to_image"
random = np.random.default_rng(7)
tensors = {}


def picture(width, height):
    """Blobs of colour with noise on them."""
    coarse = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(smooth + random.integers(-40, 41, smooth.shape), 0, 255).astype(np.uint8)


# More rows go than columns, fewer, as many; larger; one side kept.
for number, (width, height, new_width, new_height) in enumerate(
    [(51, 30, 50, 24), (51, 30, 40, 28), (33, 17, 32, 16), (20, 24, 67, 40), (20, 24, 20, 13), (20, 24, 9, 24), (20, 24, 33, 8), (3, 2, 1, 1)]
):
    pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    tensors[f"resize.{number}.from"] = torch.from_numpy(pixels)
    resized = Image.fromarray(pixels).resize((new_width, new_height), Image.Resampling.LANCZOS)
    tensors[f"resize.{number}.to"] = torch.from_numpy(np.array(resized))

for name, case in json.loads((here / "cases.json").read_text()).items():
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(models / case["model"], safety_checker=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    if "scheduler" in case:
        cls = getattr(diffusers, case["scheduler"])
        pipeline.scheduler = cls.from_config(pipeline.scheduler.config, **case.get("overrides", {}))
    seeds = case.get("seeds", [0])
    width, height = case.get("image", [40, 32])
    kwargs = {key: case[key] for key in ("strength", "eta", "num_images_per_prompt", "timesteps", "sigmas") if key in case}
    kwargs["guidance_scale"] = case.get("guidance_scale", 4.0)
    kwargs["prompt"] = case.get("prompts", ["a large red circle on a blue background"])
    if "negative_prompts" in case:
        kwargs["negative_prompt"] = case["negative_prompts"]
    if "timesteps" not in case and "sigmas" not in case:
        kwargs["num_inference_steps"] = 5
    if case.get("latents"):
        kwargs["image"] = tensors[f"{name}.image"] = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(12))
    else:
        pixels = np.stack([picture(width, height) for _ in range(case.get("images", 1))])
        tensors[f"{name}.image"] = torch.from_numpy(pixels)
        pictures = [Image.fromarray(one) for one in pixels]
        kwargs["image"] = pictures if len(pictures) > 1 else pictures[0]

    def paint(output_type):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipeline(**kwargs, generator=generators if len(seeds) > 1 else generators[0], output_type=output_type).images

    tensors[f"{name}.latents"] = paint("latent")
    tensors[f"{name}.pictures"] = torch.from_numpy(np.stack([np.array(one) for one in paint("pil")]))

fixture.save(tensors)
