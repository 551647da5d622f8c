"""The reference's side of `cargo xtask parity`: opens what `diffuse convert` writes, with no network.

    converted.py PROGRAM FOLDER

For each family a small model with random weights is made, its tensors are written to one file by their original names (as
original_names.py counts them, without the reference's converters), and PROGRAM makes a folder of it. What `from_pretrained` gives
has the very tensors of the model, and a pipeline paints the very picture. The folder is made a file again: `from_single_file` gives
the same once more, and the file has the names and bytes of the first.
"""

import os
import pathlib
import shutil
import subprocess
import sys

# Before anything is imported that looks at it: what is not there must not be fetched.
os.environ["HF_HUB_OFFLINE"] = "1"

import diffusers
import fixture
import numpy as np
import safetensors.torch
import torch
import transformers
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from original_names import controlnet_modules, open_clip_tensors, original_tensors, unet_modules, vae_modules
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

PROGRAM, WORK = sys.argv[1], pathlib.Path(sys.argv[2])

TWO = dict(down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
           block_out_channels=(64, 128), layers_per_block=1)
XL = dict(down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
          block_out_channels=(64, 128), layers_per_block=1, use_linear_projection=True, addition_embed_type="text_time",
          attention_head_dim=[1, 2], addition_time_embed_dim=8, transformer_layers_per_block=[1, 2])
# Prompts are tokenized by the real vocabulary.
TOKENS = dict(vocab_size=49408, bos_token_id=0, eos_token_id=2, pad_token_id=1)
CLIP = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=1, projection_dim=64, **TOKENS)
OPEN_CLIP = dict(hidden_size=128, intermediate_size=192, num_hidden_layers=3, num_attention_heads=2, projection_dim=64, hidden_act="gelu", **TOKENS)
SD1 = dict(TWO, cross_attention_dim=64)
SD2 = dict(TWO, cross_attention_dim=128, attention_head_dim=[1, 2], use_linear_projection=True)
SDXL = dict(XL, cross_attention_dim=64 + 128, projection_class_embeddings_input_dim=64 + 6 * 8)
REFINER = dict(XL, cross_attention_dim=128, projection_class_embeddings_input_dim=64 + 5 * 8)


def unet(**config):
    return fixture.randomize(UNet2DConditionModel(sample_size=64, **config), seed=1)


def vae(scaling_factor=0.18215):
    return fixture.randomize(AutoencoderKL(scaling_factor=scaling_factor, block_out_channels=(32, 32, 64, 64), layers_per_block=1, down_block_types=("DownEncoderBlock2D",) * 4,
                                           up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4), seed=2)


def text(model_class, config, seed=3):
    return fixture.randomize(model_class(CLIPTextConfig(**config)), seed=seed)


def controlnet(**config):
    fields = {key: value for key, value in config.items() if key != "up_block_types"}
    return fixture.randomize(ControlNetModel(**fields, conditioning_embedding_out_channels=(16, 16, 32, 32)), seed=4)


def clip_tensors(model):
    """Published checkpoints have `text_model.` before these names, and the positions' numbers."""
    tensors = {name if name.startswith("text_") else f"text_model.{name}": tensor for name, tensor in model.state_dict().items()}
    return tensors | {"text_model.embeddings.position_ids": torch.arange(77)[None]}


def prefixed(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def unet_and_vae(models):
    return (prefixed("model.diffusion_model.", original_tensors(models["unet"], unet_modules(models["unet"])))
            | prefixed("first_stage_model.", original_tensors(models["vae"], vae_modules(models["vae"]))))


def sd1(**more):
    models = {"unet": unet(**SD1, **more), "vae": vae(), "text_encoder": text(CLIPTextModel, CLIP)}
    tensors = unet_and_vae(models) | prefixed("cond_stage_model.transformer.", clip_tensors(models["text_encoder"]))
    return models, tensors | {"betas": torch.zeros(1000), "model_ema.decay": torch.tensor(0.5)}


def sd2(**more):
    models = {"unet": unet(**SD2, **more), "vae": vae(), "text_encoder": text(CLIPTextModel, OPEN_CLIP)}
    return models, unet_and_vae(models) | prefixed("cond_stage_model.model.", open_clip_tensors(models["text_encoder"]))


def sdxl(**more):
    models = {"unet": unet(**SDXL, **more), "vae": vae(0.13025), "text_encoder": text(CLIPTextModel, CLIP),
              "text_encoder_2": text(CLIPTextModelWithProjection, OPEN_CLIP, seed=5)}
    return models, (unet_and_vae(models) | prefixed("conditioner.embedders.0.transformer.", clip_tensors(models["text_encoder"]))
                    | prefixed("conditioner.embedders.1.model.", open_clip_tensors(models["text_encoder_2"])))


def refiner():
    models = {"unet": unet(**REFINER), "vae": vae(0.13025), "text_encoder_2": text(CLIPTextModelWithProjection, OPEN_CLIP)}
    return models, unet_and_vae(models) | prefixed("conditioner.embedders.0.model.", open_clip_tensors(models["text_encoder_2"]))


def alone(model, tensors):
    return {"": model}, tensors


def control(config):
    model = controlnet(**config)
    return alone(model, prefixed("control_model.", original_tensors(model, controlnet_modules(model))))


def cases():
    """What it is called, the models with the tensors of their file, flags for the program, and what is painted with."""
    square = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    mask = Image.fromarray(np.pad(np.full((32, 32), 255, np.uint8), 16))
    plain = dict(height=64, width=64)
    painted_over = dict(image=square, mask_image=mask, strength=1.0, **plain)
    yield "Stable Diffusion 1", *sd1(), [], plain
    yield "Stable Diffusion 1, inpainting", *sd1(in_channels=9), [], painted_over
    yield "InstructPix2Pix", *sd1(in_channels=8), [], dict(image=square)
    yield "Stable Diffusion 2 base", *sd2(), ["--prediction-type", "epsilon"], plain
    yield "Stable Diffusion 2 v", *sd2(), [], plain
    yield "Stable Diffusion 2, inpainting", *sd2(in_channels=9), [], painted_over
    yield "Stable Diffusion XL", *sdxl(), [], plain
    yield "Stable Diffusion XL, v_prediction", *sdxl(), ["--prediction-type", "v_prediction"], plain
    yield "Stable Diffusion XL, inpainting", *sdxl(in_channels=9), [], painted_over
    yield "Stable Diffusion XL refiner", *refiner(), [], dict(image=square, strength=0.8)
    model = unet(**SD1)
    yield "UNet", *alone(model, prefixed("model.diffusion_model.", original_tensors(model, unet_modules(model)))), [], None
    model = vae()
    yield "VAE", *alone(model, original_tensors(model, vae_modules(model))), [], None
    yield "ControlNet", *control(SD1), [], None
    yield "ControlNet of XL", *control(SDXL), [], None
    model = text(CLIPTextModel, CLIP)
    yield "text encoder, CLIP", *alone(model, clip_tensors(model)), [], None
    model = text(CLIPTextModelWithProjection, OPEN_CLIP)
    yield "text encoder, OpenCLIP", *alone(model, open_clip_tensors(model)), [], None


def convert(source, destination, flags=()):
    run = subprocess.run([PROGRAM, "convert", source, destination, *flags], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return destination


def count_same(name, model, expected):
    """How many tensors there are; fails unless both have the same, bit for bit."""
    ours, theirs = model.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys(), (name, sorted(ours.keys() ^ theirs.keys())[:3])
    for key in theirs:
        assert ours[key].dtype == theirs[key].dtype and torch.equal(ours[key], theirs[key]), (name, key)
    return len(ours)


def open_model(path, expected):
    """Loads one model and fails at anything that the library would only warn of."""
    found, info = type(expected).from_pretrained(path, output_loading_info=True)
    assert not any(info.values()), (path, info)
    return found


def paint(pipeline, arguments):
    pipeline.set_progress_bar_config(disable=True)
    for model in (part.eval() for part in pipeline.components.values() if isinstance(part, torch.nn.Module)):
        # Where weights lie in memory, which is where they lie in a file, decides how sums are taken, and so the last bits.
        for tensor in model.parameters():
            tensor.data = tensor.data.clone()
    generator = torch.Generator().manual_seed(0)
    return pipeline("a photo of a cat", num_inference_steps=3, generator=generator, output_type="np", **arguments).images


def check_pipeline(folder, models, arguments):
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    count = sum(count_same(f"{folder}/{part}", getattr(pipeline, part), model) for part, model in models.items())
    for part, model in models.items():
        open_model(folder / part, model)
    tokenizer = pipeline.tokenizer if pipeline.components.get("tokenizer") else pipeline.tokenizer_2
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    settings = {key: value for key, value in pipeline.config.items() if isinstance(value, bool)}
    settings = {key: value for key, value in settings.items() if key in ("force_zeros_for_empty_prompt", "requires_aesthetics_score", "requires_safety_checker")}
    expected = paint(type(pipeline)(**{**pipeline.components, **models}, **settings), arguments)
    found = paint(pipeline, arguments)
    assert np.isfinite(expected).all() and expected.std() > 0.01, "nothing is painted"
    assert np.array_equal(found, expected), np.abs(found - expected).max()
    return count, type(pipeline).__name__


def check_back(back, file, folder, models, pipeline_class):
    """The file that is made of the folder: its tensors, and what the reference makes of it."""
    first, again = safetensors.torch.load_file(file), safetensors.torch.load_file(back)
    unused = {name for name in first if name.endswith("position_ids") or name in ("betas", "model_ema.decay")}
    extra = again.keys() - first.keys()
    assert first.keys() - again.keys() == unused and extra <= {"v_pred"}, (back, sorted(extra)[:3])
    assert all(torch.equal(first[name], tensor) for name, tensor in again.items() if name in first), back
    if pipeline_class:
        opened = getattr(diffusers, pipeline_class).from_single_file(back, config=str(folder), local_files_only=True)
        for part, model in models.items():
            count_same(f"{back}: {part}", getattr(opened, part), model)
        return "yes"
    (model,) = models.values()
    # The reference reads no text encoders alone, and has no rows for the embedding of sizes in a ControlNet.
    if not hasattr(type(model), "from_single_file") or getattr(model, "add_embedding", None) is not None and isinstance(model, ControlNetModel):
        return "-"
    count_same(back, type(model).from_single_file(back, config=str(folder)), model)
    return "yes"


def main():
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    print(f"{'family':<36}{'class':<42}{'tensors equal':>13}  {'painted':<9}from_single_file of the way back")
    failed = []
    for number, (name, models, tensors, flags, arguments) in enumerate(cases()):
        file, folder = WORK / f"{number}.safetensors", WORK / str(number)
        safetensors.torch.save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file)
        try:
            convert(file, folder, flags)
            if arguments is None:
                (model,) = models.values()
                count, class_name, painted = count_same(name, open_model(folder, model), model), type(model).__name__, "-"
            else:
                (count, class_name), painted = check_pipeline(folder, models, arguments), "equal"
            back = convert(folder, WORK / f"{number}-back.safetensors")
            reads = check_back(back, file, folder, models, class_name if arguments is not None else None)
            print(f"{name:<36}{class_name:<42}{count:>13}  {painted:<9}{reads}", flush=True)
            if number == 0:
                # The same in pickles: torch's archive with the tensors nested, and the format before torch 1.6.
                for ending, archive in (("ckpt", True), ("pt", False)):
                    pickled = WORK / f"{number}.{ending}"
                    torch.save({"state_dict": tensors, "global_step": 7}, pickled, _use_new_zipfile_serialization=archive)
                    other = convert(pickled, WORK / f"{number}-{ending}", flags)
                    count, _ = check_pipeline(other, models, arguments)
                    what = f"{name}, .{ending}"
                    print(f"{what:<36}{class_name:<42}{count:>13}  equal", flush=True)
        except Exception as error:
            failed.append(name)
            print(f"{name:<36}FAILED: {error}", flush=True)
    shutil.rmtree(WORK, ignore_errors=True)
    sys.exit(f"not as the reference has them: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
