"""Whole pipelines with tiny random models: the folders, and the pictures that diffusers paints with them."""

import json
import shutil
import warnings

import fixture
import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
import diffusers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

warnings.filterwarnings("ignore")
# diffusers 0.42.1 looks for `text_model`, which transformers 5 no longer has: without this, clip_skip fails.
CLIPTextModel.text_model = property(lambda self: self)
here = fixture.folder()
tokenizer_folder = here.parents[3] / "cli/assets/shapes/tokenizer"
schedule = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def text_encoder(tokenizer, **changes):
    config = dict(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length, hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )
    return fixture.randomize(CLIPTextModel(CLIPTextConfig(**(config | changes))), seed=1)


def unet(**changes):
    config = dict(
        sample_size=8, block_out_channels=[8, 16], norm_num_groups=4, layers_per_block=1, cross_attention_dim=16,
        attention_head_dim=2, down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
    )
    return fixture.randomize(UNet2DConditionModel(**(config | changes)), seed=2)


def make(name, scheduler, text_changes={}, unet_changes={}):
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    vae = AutoencoderKL(
        block_out_channels=[4, 8, 8], norm_num_groups=2, layers_per_block=1, latent_channels=4, sample_size=32,
        down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3,
    )
    pipeline = StableDiffusionPipeline(
        vae=fixture.randomize(vae, seed=3), text_encoder=text_encoder(tokenizer, **text_changes), tokenizer=tokenizer,
        unet=unet(**unet_changes), scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )
    folder = here / name
    shutil.rmtree(folder, ignore_errors=True)
    pipeline.save_pretrained(folder)


make("sd1", PNDMScheduler(**schedule, skip_prk_steps=True, steps_offset=1))
make(
    "sd2",
    DDIMScheduler(**schedule, prediction_type="v_prediction", set_alpha_to_one=False, clip_sample=False, steps_offset=1),
    dict(hidden_act="gelu"),
    dict(use_linear_projection=True, attention_head_dim=[2, 4], upcast_attention=True),
)
make("sd1_distilled", DDIMScheduler(**schedule, clip_sample=False, steps_offset=1), {}, dict(time_cond_proj_dim=6))

# A folder as they were in 2022: no steps_offset, no clip_sample; only the small files differ from sd1.
old = here / "sd1_old"
shutil.rmtree(old, ignore_errors=True)
shutil.copytree(here / "sd1", old)
(old / "scheduler/scheduler_config.json").write_text(
    json.dumps({"_class_name": "DDIMScheduler", "_diffusers_version": "0.2.4", "set_alpha_to_one": False, **schedule}, indent=2) + "\n"
)
(old / "model_index.json").write_text((old / "model_index.json").read_text().replace("PNDMScheduler", "DDIMScheduler"))
(old / "unet/config.json").write_text(
    (old / "unet/config.json").read_text().replace('"_diffusers_version": "0.42.1"', '"_diffusers_version": "0.6.0"')
)

tensors = {}
for name, case in json.loads((here / "cases.json").read_text()).items():
    pipeline = StableDiffusionPipeline.from_pretrained(here / case["model"], safety_checker=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    for change in ("scheduler", "then"):
        if change in case:
            cls = getattr(diffusers, case[change])
            pipeline.scheduler = cls.from_config(pipeline.scheduler.config, **case.get("overrides", {}))
    seeds = case.get("seeds", [0])
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    kwargs = {key: case[key] for key in ("width", "height", "eta", "clip_skip", "guidance_rescale", "num_images_per_prompt", "timesteps", "sigmas") if key in case}
    kwargs.setdefault("height", 32), kwargs.setdefault("width", 32)
    kwargs["guidance_scale"] = case.get("guidance_scale", 4.0)
    kwargs["generator"] = generators if len(generators) > 1 else generators[0]
    if "timesteps" not in case and "sigmas" not in case:
        kwargs["num_inference_steps"] = 5
    if case.get("prompt_embeds"):
        generator = torch.Generator().manual_seed(11)
        for key in ("prompt_embeds", "negative_prompt_embeds"):
            kwargs[key] = tensors[f"{name}.{key}"] = torch.randn(1, 24, 16, generator=generator)
    else:
        kwargs["prompt"] = case.get("prompts", ["a large red circle on a blue background"])
        if "negative_prompts" in case:
            kwargs["negative_prompt"] = case["negative_prompts"]
    if case.get("latents"):
        kwargs["latents"] = tensors[f"{name}.start"] = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(12))
    if "stop_after" in case:

        def stop(pipe, index, timestep, kept, after=case["stop_after"]):
            pipe._interrupt = index + 1 == after
            return kept

        kwargs["callback_on_step_end"] = stop
    def again():
        kwargs["generator"] = [g.manual_seed(s) for g, s in zip(generators, seeds)] if len(generators) > 1 else generators[0].manual_seed(seeds[0])
    tensors[f"{name}.latents"] = pipeline(**kwargs, output_type="latent").images
    again()
    pictures = pipeline(**kwargs, output_type="pil").images
    tensors[f"{name}.pictures"] = torch.from_numpy(np.stack([np.array(picture) for picture in pictures]))

fixture.save(tensors)
