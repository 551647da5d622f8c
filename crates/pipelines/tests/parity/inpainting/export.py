"""Inpainting with the tiny models of text_to_image and stable_diffusion_xl, and masks that Pillow blurred, cut out and laid over."""

import json
import warnings

import diffusers
import fixture
import numpy as np
import torch
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from transformers import CLIPTextModel

warnings.filterwarnings("ignore")
# diffusers 0.42.1 looks for `text_model`, which transformers 5 no longer has.
CLIPTextModel.text_model = property(lambda self: self)
here = fixture.folder()
folders = {"xl": here.parent / "stable_diffusion_xl/base"}
random = np.random.default_rng(7)
tensors = {}


def picture(width, height, channels=3):
    """Blobs of colour with noise on them."""
    coarse = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    pixels = np.clip(smooth + random.integers(-40, 41, smooth.shape), 0, 255).astype(np.uint8)
    return pixels if channels == 3 else np.ascontiguousarray(pixels[:, :, 0])


def mask(width, height):
    """White in a rectangle, with a soft edge."""
    pixels = np.zeros((height, width), dtype=np.uint8)
    left, top = random.integers(0, width // 2), random.integers(0, height // 2)
    pixels[top : top + height // 3 + 2, left : left + width // 3 + 2] = 255
    return np.array(VaeImageProcessor.blur(Image.fromarray(pixels), 1))


processor = VaeImageProcessor(vae_scale_factor=4)
for number, (width, height, radius) in enumerate([(20, 15, 1), (20, 15, 4), (9, 31, 2.5), (33, 4, 33), (1, 1, 3), (5, 40, 0.4)]):
    pixels = picture(width, height, 1)
    tensors[f"blur.{number}.from"] = torch.from_numpy(pixels)
    tensors[f"blur.{number}.radius"] = torch.tensor(radius, dtype=torch.float32)
    tensors[f"blur.{number}.to"] = torch.from_numpy(np.array(VaeImageProcessor.blur(Image.fromarray(pixels), radius)))
# Wider than the picture to paint and narrower, at edges and in the middle, and with more around it than there is.
for number, (size, box, to, pad) in enumerate(
    [((70, 50), (20, 10, 30, 30), (32, 32), 3), ((70, 50), (0, 0, 60, 5), (32, 32), 0), ((70, 30), (60, 25, 70, 30), (64, 32), 5),
     ((30, 70), (3, 30, 9, 33), (32, 64), 40), ((40, 40), (0, 0, 40, 40), (24, 40), 2), ((33, 57), (10, 50, 12, 57), (48, 16), 1)]
):
    marked = np.zeros(size[::-1], dtype=np.uint8)
    marked[box[1] : box[3], box[0] : box[2]] = 1
    marked[box[1], box[0]] = 200
    region = processor.get_crop_region(Image.fromarray(marked), *to, pad=pad)
    original, painted, soft = picture(*size), picture(*to), picture(*size, 1)
    tensors[f"region.{number}.mask"] = torch.from_numpy(marked)
    tensors[f"region.{number}.numbers"] = torch.tensor([*to, pad, *region])
    tensors[f"region.{number}.original"] = torch.from_numpy(original)
    tensors[f"region.{number}.painted"] = torch.from_numpy(painted)
    tensors[f"region.{number}.soft"] = torch.from_numpy(soft)
    over = processor.apply_overlay(Image.fromarray(soft), Image.fromarray(original), Image.fromarray(painted), region)
    tensors[f"region.{number}.over"] = torch.from_numpy(np.array(over))

for model in ["sd1", "xl"]:
    config = UNet2DConditionModel.load_config(folders.get(model, here.parent / "text_to_image" / model), subfolder="unet")
    unet = fixture.randomize(UNet2DConditionModel.from_config(config, in_channels=9), seed=9)
    unet.save_pretrained(here / f"{model}_unet")

for name, case in json.loads((here / "cases.json").read_text()).items():
    model = case["model"]
    kind = StableDiffusionXLInpaintPipeline if model == "xl" else StableDiffusionInpaintPipeline
    without = {} if model == "xl" else dict(safety_checker=None, requires_safety_checker=False)
    if case.get("channels"):
        without["unet"] = UNet2DConditionModel.from_pretrained(here / f"{model}_unet")
    pipeline = kind.from_pretrained(folders.get(model, here.parent / "text_to_image" / model), **without)
    if hasattr(pipeline, "watermark"):
        pipeline.watermark = None
    pipeline.set_progress_bar_config(disable=True)
    if "scheduler" in case:
        cls = getattr(diffusers, case["scheduler"])
        pipeline.scheduler = cls.from_config(pipeline.scheduler.config, **case.get("overrides", {}))
    seeds = case.get("seeds", [0])
    kwargs = {key: case[key] for key in ("strength", "eta", "num_images_per_prompt", "width", "height", "padding_mask_crop") if key in case}
    kwargs["guidance_scale"] = case.get("guidance_scale", 4.0)
    kwargs["prompt"] = case.get("prompts", ["a large red circle on a blue background"])
    kwargs["num_inference_steps"] = 5
    if "negative_prompts" in case:
        kwargs["negative_prompt"] = case["negative_prompts"]
    pixels = np.stack([picture(*case.get("image", [32, 32])) for _ in range(case.get("images", 1))])
    masks = np.stack([mask(*case.get("mask", [32, 32])) for _ in range(case.get("masks", 1))])
    tensors[f"{name}.image"], tensors[f"{name}.mask"] = torch.from_numpy(pixels), torch.from_numpy(masks)
    for key, arrays in {"image": pixels, "mask_image": masks}.items():
        pictures = [Image.fromarray(one) for one in arrays]
        kwargs[key] = pictures if len(pictures) > 1 else pictures[0]

    def paint(output_type):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipeline(**kwargs, generator=generators if len(seeds) > 1 else generators[0], output_type=output_type).images

    if "padding_mask_crop" not in case:
        tensors[f"{name}.latents"] = paint("latent")
    tensors[f"{name}.pictures"] = torch.from_numpy(np.stack([np.array(one) for one in paint("pil")]))

for scheduler in [diffusers.EulerDiscreteScheduler, diffusers.DDIMScheduler]:
    name = f"refined.{scheduler.__name__}"
    base, refiner = [StableDiffusionXLInpaintPipeline.from_pretrained(here.parent / "stable_diffusion_xl" / part) for part in ["base", "refiner"]]
    for pipeline in [base, refiner]:
        pipeline.watermark = None
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    pixels, marked = picture(32, 32), mask(32, 32)
    tensors[f"{name}.image"], tensors[f"{name}.mask"] = torch.from_numpy(pixels[None]), torch.from_numpy(marked[None])
    kwargs = dict(
        prompt="a large red circle on a blue background", mask_image=Image.fromarray(marked), guidance_scale=4.0, num_inference_steps=5,
        strength=0.9999, generator=torch.Generator().manual_seed(0),
    )
    begun = base(**kwargs, image=Image.fromarray(pixels), denoising_end=0.6, output_type="latent").images
    tensors[f"{name}.begun"] = begun
    painted = refiner(**kwargs, image=begun, denoising_start=0.6).images
    tensors[f"{name}.pictures"] = torch.from_numpy(np.stack([np.array(one) for one in painted]))

fixture.save(tensors)
