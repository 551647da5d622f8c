"""ControlNets beside the tiny models of text_to_image and stable_diffusion_xl: their folders, and the pictures that diffusers paints."""

import json
import shutil
import warnings

import diffusers
import fixture
import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel

warnings.filterwarnings("ignore")
# diffusers 0.42.1 looks for `text_model`, which transformers 5 no longer has.
CLIPTextModel.text_model = property(lambda self: self)
here = fixture.folder()
models = {"xl": here.parent / "stable_diffusion_xl/base"}
random = np.random.default_rng(7)
tensors = {}


def picture(width, height):
    """Blobs of colour with noise on them."""
    coarse = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(smooth + random.integers(-40, 41, smooth.shape), 0, 255).astype(np.uint8)


def model_folder(model):
    return models.get(model, here.parent / "text_to_image" / model)


def make_net(name, model, seed, **changes):
    unet = UNet2DConditionModel.from_pretrained(model_folder(model), subfolder="unet")
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 6, 8), load_weights_from_unet=False, **changes)
    shutil.rmtree(here / name, ignore_errors=True)
    fixture.randomize(net, seed=seed).save_pretrained(here / name)


make_net("sd1", "sd1", 11)
make_net("sd1_other", "sd1", 12, controlnet_conditioning_channel_order="bgr")
make_net("xl", "xl", 13)


def load_net(name, case):
    net = ControlNetModel.from_pretrained(here / name)
    if case.get("pooled"):
        net.register_to_config(global_pool_conditions=True)
    return net


def pipeline_class(case):
    kind = "Inpaint" if "mask" in case else "Img2Img" if "strength" in case else ""
    name = {
        ("xl", "Inpaint"): "StableDiffusionXLControlNetInpaintPipeline",
        ("xl", "Img2Img"): "StableDiffusionXLControlNetImg2ImgPipeline",
        ("xl", ""): "StableDiffusionXLControlNetPipeline",
    }.get((case["model"], kind), f"StableDiffusionControlNet{kind}Pipeline")
    return getattr(diffusers, name)


def make_pipeline(case):
    nets = [load_net(name, case) for name in case["nets"]]
    without = dict(add_watermarker=False) if case["model"] == "xl" else dict(safety_checker=None, requires_safety_checker=False)
    net = nets if len(nets) > 1 else nets[0]
    pipeline = pipeline_class(case).from_pretrained(model_folder(case["model"]), controlnet=net, **without)
    pipeline.set_progress_bar_config(disable=True)
    if "scheduler" in case:
        pipeline.scheduler = getattr(diffusers, case["scheduler"]).from_config(pipeline.scheduler.config)
    return pipeline


def one_or_all(values):
    return values if len(values) > 1 else values[0]


for name, case in json.loads((here / "cases.json").read_text()).items():
    pipeline = make_pipeline(case)
    count = len(case["nets"])
    kwargs = {key: case[key] for key in ("strength", "guess_mode", "num_images_per_prompt", "padding_mask_crop", "denoising_end") if key in case}
    kwargs["guidance_scale"] = case.get("guidance_scale", 4.0)
    kwargs["num_inference_steps"] = 5
    kwargs["prompt"] = case.get("prompts", ["a large red circle on a blue background"])
    if "negative_prompts" in case:
        kwargs["negative_prompt"] = case["negative_prompts"]
    if case.get("size", True):
        kwargs |= dict(width=32, height=32)
    if case.get("conditions"):
        kwargs |= dict(original_size=(64, 48), negative_original_size=(16, 24), negative_target_size=(40, 32))
    kwargs["controlnet_conditioning_scale"] = one_or_all(case.get("scales", [1.0] * count))
    kwargs["control_guidance_start"] = one_or_all(case.get("starts", [0.0] * count))
    kwargs["control_guidance_end"] = one_or_all(case.get("ends", [1.0] * count))
    controls = []
    for number in range(count):
        pixels = np.stack([picture(*case.get("control", [40, 36])) for _ in range(case.get("controls", 1))])
        tensors[f"{name}.control.{number}"] = torch.from_numpy(pixels)
        controls.append(one_or_all([Image.fromarray(one) for one in pixels]))
    kwargs["control_image" if "strength" in case else "image"] = one_or_all(controls)
    if "strength" in case:
        pixels = picture(*case.get("image", [32, 32]))
        tensors[f"{name}.image"] = torch.from_numpy(pixels[None])
        kwargs["image"] = Image.fromarray(pixels)
    if "mask" in case:
        width, height = case.get("image", [32, 32])
        marked = np.zeros((height, width), dtype=np.uint8)
        marked[height // 4 : height // 2, width // 3 : width // 2 + 5] = 255
        tensors[f"{name}.mask"] = torch.from_numpy(marked[None])
        kwargs["mask_image"] = Image.fromarray(marked)
    seeds = case.get("seeds", [0])

    def paint(output_type):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipeline(**kwargs, generator=one_or_all(generators), output_type=output_type).images

    if "padding_mask_crop" not in case:
        tensors[f"{name}.latents"] = paint("latent")
    tensors[f"{name}.pictures"] = torch.from_numpy(np.stack([np.array(one) for one in paint("pil")]))

fixture.save(tensors)
