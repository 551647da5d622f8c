"""Ten steps of diffusers' train_instruct_pix2pix.py on a tiny model: the arithmetic of the script, with its random numbers in their order. The script gives the
widened convolution a random bias; here it keeps its own."""

import json
import sys

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from transformers import CLIPTextModel, CLIPTokenizer

import fixture

torch.set_grad_enabled(True)

PIPELINES = fixture.folder() / "../../../../pipelines/tests/parity"
STEPS = 10
BATCH = 2
# What is saved of the weights in the end: every so many.
EVERY = 50
CASES = {
    "widened": {"dropout": 0.2, "lr_scheduler": "constant", "accumulation": 2, "ema": True},
    "further": {"unet": "instruct_pix2pix/sd1_unet", "lr_scheduler": "cosine", "warmup": 3, "max_grad_norm": 0.5, "prediction_type": "v_prediction"},
}
CAPTIONS = ["make it red", "a star", "turn the square into a small circle", "blue", "", "add a background"]

tensors = {}
generator = torch.Generator().manual_seed(10)
edited = torch.rand((6, 3, 32, 32), generator=generator) * 2 - 1
originals = torch.rand((6, 3, 32, 32), generator=generator)
tensors["edited"], tensors["originals"] = edited, originals


def run(name, case):
    folder = PIPELINES / "text_to_image/sd1"
    unet = UNet2DConditionModel.from_pretrained(PIPELINES / case["unet"] if "unet" in case else folder / "unet")
    vae = AutoencoderKL.from_pretrained(folder / "vae").requires_grad_(False)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").requires_grad_(False)
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    if "prediction_type" in case:
        scheduler.register_to_config(prediction_type=case["prediction_type"])
    if "unet" not in case:
        unet.register_to_config(in_channels=8)
        with torch.no_grad():
            wider = torch.nn.Conv2d(8, unet.conv_in.out_channels, unet.conv_in.kernel_size, unet.conv_in.stride, unet.conv_in.padding)
            wider.weight.zero_()
            wider.weight[:, :4, :, :].copy_(unet.conv_in.weight)
            wider.bias.copy_(unet.conv_in.bias)
            unet.conv_in = wider
    unet.train()

    def encode(captions):
        ids = tokenizer(captions, max_length=tokenizer.model_max_length, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return text_encoder(ids)[0]

    ema = EMAModel(unet.parameters()) if case.get("ema") else None
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3, weight_decay=1e-2, eps=1e-8, foreach=False)
    schedule = get_scheduler(case["lr_scheduler"], optimizer, num_warmup_steps=case.get("warmup", 0), num_training_steps=STEPS)
    accumulation = case.get("accumulation", 1)
    torch.manual_seed(42)
    dropout_generator = torch.Generator().manual_seed(42)
    losses, digests, batch = [], [], 0
    for _ in range(STEPS):
        total = 0.0
        for _ in range(accumulation):
            indices = [(batch * BATCH + i) % 6 for i in range(BATCH)]
            batch += 1
            latents = vae.encode(edited[indices]).latent_dist.sample() * vae.config.scaling_factor
            # Not randn_like: the VAE leaves its channels last, where torch fills the same shape with other numbers.
            noise = torch.randn(latents.shape)
            timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (BATCH,)).long()
            noisy = scheduler.add_noise(latents, noise, timesteps)
            states = encode([CAPTIONS[i] for i in indices])
            seen = vae.encode(originals[indices] * 2 - 1).latent_dist.mode()
            if "dropout" in case:
                random_p = torch.rand(BATCH, generator=dropout_generator)
                prompt_mask = (random_p < 2 * case["dropout"]).reshape(BATCH, 1, 1)
                states = torch.where(prompt_mask, encode([""]), states)
                image_mask = 1 - ((random_p >= case["dropout"]).to(seen.dtype) * (random_p < 3 * case["dropout"]).to(seen.dtype))
                seen = image_mask.reshape(BATCH, 1, 1, 1) * seen
            target = noise if scheduler.config.prediction_type == "epsilon" else scheduler.get_velocity(latents, noise, timesteps)
            prediction = unet(torch.cat([noisy, seen], dim=1), timesteps, states, return_dict=False)[0]
            loss = F.mse_loss(prediction.float(), target.float(), reduction="mean")
            total += loss.item()
            (loss / accumulation).backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), case.get("max_grad_norm", 1.0))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if ema:
            ema.step(unet.parameters())
        losses.append(total / accumulation)
        digests.append(fixture.digest(unet.parameters()))
    tensors[f"{name}/losses"] = torch.tensor(losses, dtype=torch.float64)
    tensors[f"{name}/digests"] = torch.tensor(digests, dtype=torch.float64)
    for index, (key, value) in enumerate(unet.named_parameters()):
        tensors[f"{name}/end/unet.{key}"] = value.detach().flatten()[::EVERY].clone()
        if ema:
            tensors[f"{name}/average/unet.{key}"] = ema.shadow_params[index].flatten()[::EVERY].clone()


for name, case in CASES.items():
    run(name, case)
    print(name, tensors[f"{name}/losses"].tolist(), file=sys.stderr)
fixture.save(tensors)
settings = {"captions": CAPTIONS, "batch": BATCH, "every": EVERY, "cases": CASES}
(fixture.folder() / "cases.json").write_text(json.dumps(settings, indent=1) + "\n")
