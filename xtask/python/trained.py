"""The reference's side of `cargo xtask parity`: opens what `diffuse train` writes, with no network.

    trained.py PROGRAM SHAPES FOLDER

For each recipe PROGRAM takes a few steps on the small model in SHAPES, and paints with what it has learned. diffusers (with PEFT) loads the same files onto the same model
and paints the same picture: no pixel may be further off than 2 of 255, and it must not be the picture of the model without them.
"""

import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

# Before anything is imported that looks at it: what is not there must not be fetched.
os.environ["HF_HUB_OFFLINE"] = "1"

import diffusers
import numpy as np
import safetensors.torch
import torch
import transformers
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PROGRAM, SHAPES, WORK = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
PROMPT = "a large red circle in the center on a blue background"
STEPS, BOUND = 5, 2
LORA = "pytorch_lora_weights.safetensors"
# The small model is kept in half precision.
FLOAT32 = {"torch_dtype": torch.float32}


def run(*words):
    ended = subprocess.run([PROGRAM, *map(str, words)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def pictures(folder):
    folder.mkdir(parents=True)
    for number in range(4):
        pixels = np.full((64, 64, 3), (40 * number, 200, 90), np.uint8)
        pixels[16:48, 16:48] = (200, 30, 50 * number)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def pairs(data, folder):
    """Each picture with its negative."""
    shutil.copytree(data, folder)
    rows = []
    for file in sorted(data.iterdir()):
        Image.fromarray(255 - np.asarray(Image.open(file))).save(folder / f"negative-{file.name}")
        rows.append({"file_name": file.name, "conditioning_image": f"negative-{file.name}", "text": "a purple square"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def train(recipe, output, *flags):
    run("train", recipe, "--output_dir", output, "--max_train_steps", 3, "--seed", 1, *flags)
    return output


def dreambooth(data, output, recipe="dreambooth-lora", *flags):
    instance = ("--instance_data_dir", data, "--instance_prompt", "a purple square")
    return train(recipe, output, *instance, "--learning_rate", "1e-2", *flags)


def word(data, output):
    token = ("--placeholder_token", "<thing>", "--initializer_token", "square")
    return train("textual-inversion", output, "--train_data_dir", data, "--learning_rate", "1.0", *token)


def ours(output, *flags, prompt=PROMPT):
    run("generate", *([prompt] if prompt else []), "--steps", STEPS, "--seed", 0, "--dtype", "f32", "--output", output, *flags)
    return np.asarray(Image.open(output).convert("RGB")).astype(int)


def theirs(pipeline, *prompts, **more):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    picture = pipeline(*prompts, num_inference_steps=STEPS, generator=generator, **more).images[0]
    return np.asarray(picture.convert("RGB")).astype(int)


def shapes():
    return diffusers.StableDiffusionPipeline.from_pretrained(SHAPES, **FLOAT32)


def with_lora(folder):
    pipeline = shapes()
    pipeline.load_lora_weights(folder, weight_name=LORA)
    return pipeline


def inpainting_model(folder):
    """The small model with a UNet that sees a mask and the rest of the picture besides."""
    parts = shapes().components
    narrow = parts["unet"].conv_in
    wide = torch.nn.Conv2d(9, narrow.out_channels, 3, padding=1)
    torch.nn.init.normal_(wide.weight, std=0.02, generator=torch.Generator().manual_seed(3))
    wide.weight.data[:, :4] = narrow.weight.data
    wide.bias.data = narrow.bias.data
    parts["unet"].conv_in = wide
    parts["unet"].register_to_config(in_channels=9)
    diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)
    return folder


def cases_with_pictures(data):
    """What sees a picture: a ControlNet, a model that edits, and one that paints into pictures."""
    both = pairs(data, WORK / "pairs")
    file = both / "negative-1.png"
    negative = Image.open(file)
    net = train("controlnet", WORK / "controlnet", "--train_data_dir", both, "--learning_rate", "1e-2") / "controlnet"
    pipeline = diffusers.StableDiffusionControlNetPipeline.from_pretrained(SHAPES, controlnet=diffusers.ControlNetModel.from_pretrained(net), **FLOAT32)
    yield "ControlNet", ours(WORK / "out.png", "--model", SHAPES, "--control", f"{net}:{file}"), theirs(pipeline, PROMPT, image=negative)

    columns = ("--original_image_column", "conditioning_image", "--edited_image_column", "image", "--edit_prompt_column", "text")
    base = ("--pretrained_model_name_or_path", SHAPES, "--train_data_dir", both)
    model = train("instruct-pix2pix", WORK / "edits", *base, *columns, "--learning_rate", "1e-3", "--conditioning_dropout_prob", 0.05) / "model"
    pipeline = diffusers.DiffusionPipeline.from_pretrained(model)
    yield "InstructPix2Pix", ours(WORK / "out.png", "--model", model, "--init-image", file), theirs(pipeline, PROMPT, image=negative)

    model = inpainting_model(WORK / "into")
    folder = dreambooth(data, WORK / "LoRA for inpainting", "dreambooth-lora", "--pretrained_model_name_or_path", model)
    mask = WORK / "mask.png"
    Image.fromarray(np.pad(np.full((32, 32), 255, np.uint8), 16)).save(mask)
    pipeline = diffusers.StableDiffusionInpaintPipeline.from_pretrained(model, **FLOAT32)
    pipeline.load_lora_weights(folder, weight_name=LORA)
    flags = ("--model", model, "--init-image", file, "--mask", mask, "--no-keep-unmasked", "--lora", folder / LORA)
    yield "LoRA for inpainting", ours(WORK / "out.png", *flags), theirs(pipeline, PROMPT, image=negative, mask_image=Image.open(mask))


def cases_with_words(data):
    """A word with a LoRA for it, and words with what cross-attention makes of them."""
    token = ("--placeholder_token", "<thing>", "--initializer_token", "square", "--learning_rate_ti", "1.0", "--max_train_steps_ti", 3)
    folder = train("pivotal-tuning", WORK / "pivotal", "--train_data_dir", data, "--learning_rate", "1e-2", *token)
    file, prompt = folder / "learned_embeds.safetensors", "a large red <thing> on a blue background"
    pipeline = with_lora(folder)
    pipeline.load_textual_inversion(file, token="<thing>")
    flags = ("--model", SHAPES, "--embedding", file, "--lora", folder / LORA)
    yield "pivotal tuning", ours(WORK / "out.png", *flags, prompt=prompt), theirs(pipeline, prompt)

    for name, frozen in (("Custom Diffusion", "crossattn"), ("Custom Diffusion, keys and values", "crossattn_kv")):
        token = ("--modifier_token", "<new1>", "--initializer_token", "square", "--freeze_model", frozen)
        instance = ("--instance_data_dir", data, "--instance_prompt", "a <new1> square")
        folder = train("custom-diffusion", WORK / name, *instance, "--learning_rate", "1e-2", *token)
        file, prompt = folder / "<new1>.safetensors", "a large red <new1> on a blue background"
        pipeline = shapes()
        # Without the pipeline, this version reads the file and leaves the UNet as it was.
        pipeline.unet.load_attn_procs(folder, weight_name="pytorch_custom_diffusion_weights.safetensors", _pipeline=pipeline)
        pipeline.load_textual_inversion(file, token="<new1>")
        flags = ("--model", SHAPES, "--embedding", file, "--lora", folder / LORA)
        yield name, ours(WORK / "out.png", *flags, prompt=prompt), theirs(pipeline, prompt)


def cases_of_xl(data):
    """A LoRA for UNet and both text encoders, in both layouts, a whole UNet, a word and a ControlNet, of a tiny Stable Diffusion XL."""
    base = pathlib.Path(SHAPES).resolve().parents[2] / "pipelines/tests/parity/stable_diffusion_xl/base"
    small, begun = {"width": 32, "height": 32}, ("--pretrained_model_name_or_path", base, "--resolution", 32)
    size = ("--width", 32, "--height", 32)
    for name, flags in {"": (), ", kohya's layout": ("--lora_format", "kohya")}.items():
        folder = dreambooth(data, WORK / f"XL{name}", "dreambooth-lora", *begun, "--train_text_encoder", *flags)
        pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(base, **FLOAT32)
        pipeline.load_lora_weights(folder, weight_name=LORA)
        flags = ("--model", base, *size, "--lora", folder / LORA)
        yield f"LoRA for XL, with both text encoders{name}", ours(WORK / "out.png", *flags), theirs(pipeline, PROMPT, **small)

    model = train("text-to-image", WORK / "XL whole", *begun, "--train_data_dir", WORK / "pairs", "--learning_rate", "1e-2") / "model"
    pipeline = diffusers.DiffusionPipeline.from_pretrained(model)
    yield "whole UNet of XL", ours(WORK / "out.png", "--model", model, *size), theirs(pipeline, PROMPT, **small)

    token = ("--placeholder_token", "<thing>", "--initializer_token", "circle", "--learning_rate", "1.0")
    folder = train("textual-inversion", WORK / "XL word", *begun, "--train_data_dir", data, *token)
    file, prompt = folder / "learned_embeds.safetensors", "a large red <thing> on a blue background"
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(base, **FLOAT32)
    vectors = safetensors.torch.load_file(file)
    for key, suffix in (("clip_l", ""), ("clip_g", "_2")):
        models = {"text_encoder": getattr(pipeline, f"text_encoder{suffix}"), "tokenizer": getattr(pipeline, f"tokenizer{suffix}")}
        pipeline.load_textual_inversion(vectors[key], token="<thing>", **models)
    flags = ("--model", base, *size, "--embedding", f"{file}:<thing>")
    yield "textual inversion of XL", ours(WORK / "out.png", *flags, prompt=prompt), theirs(pipeline, prompt, **small)

    file = WORK / "pairs/negative-1.png"
    net = train("controlnet", WORK / "XL net", *begun, "--train_data_dir", WORK / "pairs", "--learning_rate", "1e-2") / "controlnet"
    pipeline = diffusers.StableDiffusionXLControlNetPipeline.from_pretrained(base, controlnet=diffusers.ControlNetModel.from_pretrained(net), **FLOAT32)
    flags = ("--model", base, *size, "--control", f"{net}:{file}")
    yield "ControlNet of XL", ours(WORK / "out.png", *flags), theirs(pipeline, PROMPT, image=Image.open(file), **small)


def cases(data):
    """What was trained, and the two pictures."""
    text_too = ("--train_text_encoder",)
    for name, flags in {
        "LoRA": (),
        "LoRA, with the text encoder": text_too,
        "LoRA, kohya's layout": ("--lora_format", "kohya", *text_too),
        "LoRA, of convolutions": ("--lora_layers", "conv1,conv2,to_q"),
        "DoRA": ("--use_dora", *text_too),
        "LoRA, rank-stabilised, by a pattern": ("--use_rslora", "--target_modules", r".*attn2\.to_[kv]"),
        "LoRA, bfloat16": ("--mixed_precision", "bf16", "--gradient_checkpointing"),
    }.items():
        folder = dreambooth(data, WORK / name, "dreambooth-lora", *flags)
        yield name, ours(WORK / "out.png", "--model", SHAPES, "--lora", folder / LORA), theirs(with_lora(folder), PROMPT)

    folder = word(data, WORK / "word")
    file, prompt = folder / "learned_embeds.safetensors", "a large red <thing> on a blue background"
    pipeline = shapes()
    pipeline.load_textual_inversion(file, token="<thing>")
    yield "textual inversion", ours(WORK / "out.png", "--model", SHAPES, "--embedding", file, prompt=prompt), theirs(pipeline, prompt)

    model = dreambooth(data, WORK / "whole", "dreambooth", "--pretrained_model_name_or_path", SHAPES, *text_too) / "model"
    pipeline = diffusers.DiffusionPipeline.from_pretrained(model)
    yield "whole UNet and text encoder", ours(WORK / "out.png", "--model", model), theirs(pipeline, PROMPT)

    yield from cases_with_words(data)
    yield from cases_with_pictures(data)
    yield from cases_of_xl(data)

    config = WORK / "unet.json"
    diffusers.UNet2DModel(sample_size=32, block_out_channels=(32, 64), norm_num_groups=8, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                          up_block_types=("AttnUpBlock2D", "UpBlock2D")).save_config(WORK)
    (WORK / "config.json").rename(config)
    model = train("unconditional", WORK / "unconditional", "--train_data_dir", data, "--model_config_name_or_path", config, "--resolution", 32) / "model"
    pipeline = diffusers.DiffusionPipeline.from_pretrained(model)
    yield "unconditional", ours(WORK / "out.png", "--model", model, prompt=None), theirs(pipeline)


def check_events(data):
    """TensorBoard itself reads what is written for it: numbers of each step, and pictures."""
    flags = ("--report_to", "tensorboard", "--validation_prompt", PROMPT, "--validation_steps", 2, "--num_validation_images", 1, "--num_inference_steps", 2)
    folder = dreambooth(data, WORK / "events", "dreambooth-lora", *flags) / "logs"
    read = EventAccumulator(str(folder))
    read.Reload()
    losses = read.Scalars("loss")
    log = [json.loads(line) for line in (folder.parent / "log.jsonl").read_text().splitlines()]
    assert [event.step for event in losses] == [line["step"] for line in log], losses
    assert all(abs(event.value - line["loss"]) < 1e-6 for event, line in zip(losses, log)), losses
    tag, *_ = read.Tags()["images"]
    steps = [event.step for event in read.Images(tag)]
    assert steps == [2, 3], steps
    picture = Image.open(io.BytesIO(read.Images(tag)[0].encoded_image_string))
    assert picture.size == (64, 64), picture.size
    print(f"TensorBoard reads {sorted(read.Tags()['scalars'])} and {len(steps)} pictures")


def main():
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    shutil.rmtree(WORK, ignore_errors=True)
    data = pictures(WORK / "data")
    untrained = theirs(shapes(), PROMPT)
    failed = []
    print(f"{'trained':<54}{'largest difference of 255':>26}")
    for name, found, expected in cases(data):
        difference = np.abs(found - expected).max()
        changed = expected.shape != untrained.shape or np.abs(expected - untrained).max() > BOUND
        is_right = difference <= BOUND and changed
        print(f"{name:<54}{difference:>26}{'' if is_right else '  FAILED'}", flush=True)
        if not is_right:
            failed.append(name)
    check_events(data)
    shutil.rmtree(WORK, ignore_errors=True)
    sys.exit(f"not as the reference has them: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
