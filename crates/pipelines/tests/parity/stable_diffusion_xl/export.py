"""Stable Diffusion XL with tiny random models: the folders of a base and its refiner, and the pictures that diffusers paints with them."""

import json
import shutil
import warnings

import diffusers
import fixture
import numpy as np
import safetensors.torch
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

warnings.filterwarnings("ignore")
here = fixture.folder()
random = np.random.default_rng(7)
tokenizer_folder = here.parents[3] / "cli/assets/shapes/tokenizer"
PROJECTION = 10


def make_tokenizer(pad_token):
    return CLIPTokenizer.from_pretrained(tokenizer_folder, pad_token=pad_token)


def text_config(tokenizer, **changes):
    config = dict(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=12, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length, hidden_act="quick_gelu", projection_dim=PROJECTION,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextConfig(**(config | changes))


def make_unet(seed, text_width, numbers):
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=[8, 16], norm_num_groups=4, layers_per_block=1, cross_attention_dim=text_width,
        attention_head_dim=[2, 4], transformer_layers_per_block=[1, 2], use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=6, projection_class_embeddings_input_dim=PROJECTION + 6 * numbers,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
    )
    return fixture.randomize(unet, seed=seed)


def make_models():
    tokenizer, tokenizer_2 = make_tokenizer("<|endoftext|>"), make_tokenizer("!")
    text_encoder = fixture.randomize(CLIPTextModel(text_config(tokenizer)), seed=1)
    config_2 = text_config(tokenizer_2, hidden_size=12, num_hidden_layers=4, hidden_act="gelu")
    text_encoder_2 = fixture.randomize(CLIPTextModelWithProjection(config_2), seed=2)
    vae = AutoencoderKL(
        block_out_channels=[4, 8, 8], norm_num_groups=2, layers_per_block=1, latent_channels=4, sample_size=32, scaling_factor=0.13025,
        down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3,
    )
    shared = dict(
        vae=fixture.randomize(vae, seed=3), tokenizer_2=tokenizer_2, text_encoder_2=text_encoder_2,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
        ),
    )
    base = StableDiffusionXLPipeline(tokenizer=tokenizer, text_encoder=text_encoder, unet=make_unet(4, 20, 6), **shared)
    refiner = StableDiffusionXLImg2ImgPipeline(
        tokenizer=None, text_encoder=None, unet=make_unet(5, 12, 5), requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False, **shared
    )
    for name, pipeline in (("base", base), ("refiner", refiner)):
        shutil.rmtree(here / name, ignore_errors=True)
        pipeline.save_pretrained(here / name)


LORA_LAYERS = {
    "unet": ("lora_unet", ["down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k", "mid_block.attentions.0.proj_in", "add_embedding.linear_1"]),
    "text_encoder": ("lora_te1", ["encoder.layers.0.self_attn.q_proj", "encoder.layers.1.mlp.fc1"]),
    "text_encoder_2": ("lora_te2", ["encoder.layers.0.self_attn.out_proj", "encoder.layers.2.mlp.fc2"]),
}
LORA_RANK, LORA_ALPHA = 2, 1.5


def make_lora():
    """A file as kohya's scripts write it."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(here / "base")
    generator, tensors = torch.Generator().manual_seed(8), {}
    for component, (prefix, layers) in LORA_LAYERS.items():
        for layer in layers:
            out, inner = lora_layer(pipeline, component, layer).weight.shape
            name = f"{prefix}_{'' if component == 'unet' else 'text_model_'}{layer.replace('.', '_')}"
            tensors[f"{name}.lora_down.weight"] = torch.randn(LORA_RANK, inner, generator=generator)
            tensors[f"{name}.lora_up.weight"] = torch.randn(out, LORA_RANK, generator=generator)
            tensors[f"{name}.alpha"] = torch.tensor(LORA_ALPHA)
    safetensors.torch.save_file(tensors, here / "lora.safetensors")


def lora_layer(pipeline, component, layer):
    modules = dict(getattr(pipeline, component).named_modules())
    return modules.get(layer) or modules[f"text_model.{layer}"]


def apply_lora(pipeline):
    """The definition: W + alpha / rank * up @ down."""
    tensors = safetensors.torch.load_file(here / "lora.safetensors")
    for component, (prefix, layers) in LORA_LAYERS.items():
        for layer in layers:
            name = f"{prefix}_{'' if component == 'unet' else 'text_model_'}{layer.replace('.', '_')}"
            delta = tensors[f"{name}.lora_up.weight"] @ tensors[f"{name}.lora_down.weight"]
            lora_layer(pipeline, component, layer).weight.data += LORA_ALPHA / LORA_RANK * delta


def make_embedding():
    generator = torch.Generator().manual_seed(9)
    vectors = {"clip_l": torch.randn(2, 8, generator=generator), "clip_g": torch.randn(2, 12, generator=generator)}
    safetensors.torch.save_file(vectors, here / "embedding.safetensors")


def load_embedding(pipeline):
    vectors = safetensors.torch.load_file(here / "embedding.safetensors")
    encoders = (("clip_l", pipeline.text_encoder, pipeline.tokenizer), ("clip_g", pipeline.text_encoder_2, pipeline.tokenizer_2))
    for key, text_encoder, tokenizer in encoders:
        pipeline.load_textual_inversion(vectors[key], token="<cat>", text_encoder=text_encoder, tokenizer=tokenizer)


def load(cls, case, name):
    pipeline = cls.from_pretrained(here / name)
    pipeline.set_progress_bar_config(disable=True)
    if "scheduler" in case:
        scheduler = getattr(diffusers, case["scheduler"])
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **case.get("overrides", {}))
    pipeline.register_to_config(**case.get("index", {}))
    pipeline.vae.register_to_config(**case.get("vae", {}))
    if case.get("lora"):
        apply_lora(pipeline)
    if case.get("embedding"):
        load_embedding(pipeline)
    return pipeline


def picture(width, height):
    """Blobs of colour with noise on them."""
    coarse = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(smooth + random.integers(-40, 41, smooth.shape), 0, 255).astype(np.uint8)


def arguments(name, case):
    """What a base is asked for; a list in the case is one value for each prompt, or (height, width)."""
    plain = ("eta", "clip_skip", "guidance_rescale", "num_images_per_prompt", "timesteps", "sigmas")
    kwargs = {key: case[key] for key in plain if key in case}
    for key in case.get("conditions", {}):
        kwargs[key] = tuple(case["conditions"][key]) if isinstance(case["conditions"][key], list) else case["conditions"][key]
    if "guidance_scale" in case:
        kwargs["guidance_scale"] = case["guidance_scale"]
    if "timesteps" not in case and "sigmas" not in case:
        kwargs["num_inference_steps"] = case.get("steps", 4)
    if case.get("prompt_embeds"):
        generator = torch.Generator().manual_seed(11)
        for key, shape in (("prompt_embeds", (1, 24, 20)), ("pooled_prompt_embeds", (1, PROJECTION))):
            for prefix in ("", "negative_"):
                kwargs[prefix + key] = tensors[f"{name}.{prefix}{key}"] = torch.randn(shape, generator=generator)
    else:
        kwargs["prompt"] = case.get("prompts", ["a large red circle on a blue background"])
        for key in ("prompt_2", "negative_prompt", "negative_prompt_2"):
            if key in case:
                kwargs[key] = case[key]
    return kwargs


def paint(name, case):
    """Paints a case, as latents or as pictures; what it paints from is written once."""
    kwargs = arguments(name, case)
    size = dict(height=case.get("height", 32), width=case.get("width", 32))
    if case.get("default_size"):
        size = {}
    if case.get("latents"):
        kwargs["latents"] = tensors[f"{name}.start"] = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(12))
    seeds = case.get("seeds", [0])
    if "image" in case:
        pixels = np.stack([picture(*case["image"]) for _ in range(case.get("images", 1))])
        tensors[f"{name}.image"] = torch.from_numpy(pixels)
        pictures = [Image.fromarray(one) for one in pixels]
        kwargs |= dict(image=pictures if len(pictures) > 1 else pictures[0], strength=case["strength"])

    scores = {key: case[key] for key in ("aesthetic_score", "negative_aesthetic_score") if key in case}

    def run(output_type):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        generator = generators if len(generators) > 1 else generators[0]
        given = dict(generator=generator, output_type=output_type)
        begin = kwargs | scores if "image" in case else kwargs | size
        base_class = StableDiffusionXLImg2ImgPipeline if "image" in case else StableDiffusionXLPipeline
        base = load(base_class, case, case.get("model", "base"))
        if "split" not in case:
            return base(**begin, **given).images
        latents = base(**begin, generator=generator, output_type="latent", denoising_end=case["split"]).images
        refiner = load(StableDiffusionXLImg2ImgPipeline, case, "refiner")
        # As its users do: what the refiner does not read is left out.
        left_out = ("prompt_2", "negative_prompt_2", "latents", "image", "strength")
        told = {key: value for key, value in kwargs.items() if key not in left_out}
        return refiner(**told, **scores, image=latents, denoising_start=case["split"], **given).images

    tensors[f"{name}.latents"] = run("latent")
    tensors[f"{name}.pictures"] = torch.from_numpy(np.stack([np.array(one) for one in run("pil")]))


tensors = {}
make_models()
make_lora()
make_embedding()
for name, case in json.loads((here / "cases.json").read_text()).items():
    paint(name, case)
fixture.save(tensors)
