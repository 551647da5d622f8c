"""PyTorch's side of `cargo xtask bench train`: steps as diffusers' examples/text_to_image/train_text_to_image_lora.py takes them on a CPU.

    bench_train.py FOLDER PICTURES lora|whole f32|bf16 keep|recompute THREADS

FOLDER is a Stable Diffusion 1.5, PICTURES a folder of pictures with captions beside them. `whole` trains the UNet itself in float32 under autocast. One line of JSON comes
after two steps, and one with `seconds` and `peak_bytes` after each further step, of which there is one for each line on standard input.
"""

import contextlib
import json
import pathlib
import resource
import sys
import time
import warnings

import diffusers
import numpy
import peft
import PIL.Image
import torch
import transformers

RANK = 4
SIDE = 512
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


class Pictures(torch.utils.data.Dataset):
    """Resized to the shorter side, cut at random."""

    def __init__(self, folder, tokenizer):
        self.files, self.tokenizer = sorted(pathlib.Path(folder).glob("*.jpg")), tokenizer

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        file = self.files[index]
        picture = PIL.Image.open(file).convert("RGB")
        scale = SIDE / min(picture.size)
        picture = picture.resize([round(side * scale) for side in picture.size], PIL.Image.BILINEAR)
        left = torch.randint(0, picture.width - SIDE + 1, ()).item()
        top = torch.randint(0, picture.height - SIDE + 1, ()).item()
        picture = picture.crop((left, top, left + SIDE, top + SIDE))
        values = torch.from_numpy(numpy.array(picture)).permute(2, 0, 1) / 127.5 - 1
        caption = file.with_suffix(".txt").read_text()
        tokens = self.tokenizer(caption, max_length=77, padding="max_length", truncation=True, return_tensors="pt")
        return values, tokens.input_ids[0]


def forever(loader):
    while True:
        yield from loader


def prepare(folder, pictures, trained, dtype, memory):
    dtype = DTYPES[dtype]
    models = diffusers.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=dtype)
    vae, text_encoder, unet = models.vae, models.text_encoder, models.unet
    for model in (vae, unet):
        model.to(memory_format=torch.channels_last)
    noise_scheduler = diffusers.DDPMScheduler.from_config(models.scheduler.config)
    for model in (vae, text_encoder, unet):
        model.requires_grad_(False)
    autocast = contextlib.nullcontext()
    if trained == "lora":
        unet.add_adapter(
            peft.LoraConfig(
                r=RANK,
                lora_alpha=RANK,
                init_lora_weights="gaussian",
                target_modules=["to_k", "to_q", "to_v", "to_out.0"],
            )
        )
        parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
        for parameter in parameters:
            parameter.data = parameter.data.float()
    else:
        unet.float().requires_grad_(True)
        parameters = list(unet.parameters())
    if dtype != torch.float32:
        autocast = torch.autocast("cpu", dtype)
    if memory == "recompute":
        unet.enable_gradient_checkpointing()
    unet.train()
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=1e-2)
    batches = forever(torch.utils.data.DataLoader(Pictures(pictures, models.tokenizer), batch_size=1, shuffle=True))

    def step():
        values, ids = next(batches)
        latents = vae.encode(values.to(dtype)).latent_dist.sample() * vae.config.scaling_factor
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, noise_scheduler.config.num_train_timesteps, (latents.shape[0],))
        noisy = noise_scheduler.add_noise(latents, noise, timesteps)
        text = text_encoder(ids, return_dict=False)[0]
        with autocast:
            predicted = unet(noisy, timesteps, text, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(predicted.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def main(folder, pictures, trained, dtype, memory, threads):
    warnings.filterwarnings("ignore")
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    step = prepare(folder, pictures, trained, dtype, memory)
    step()
    step()
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        seconds = time.perf_counter() - start
        # In kB on Linux, in bytes on macOS.
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        print(json.dumps({"seconds": seconds, "peak_bytes": peak}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
