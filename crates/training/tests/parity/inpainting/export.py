"""Ten steps of diffusers' research project dreambooth_inpaint (train_dreambooth_inpaint_lora.py) on a tiny model: the arithmetic of the script, with its random
numbers in their order, but for those of masks, which are torch's and not Python's; and masks as it draws them."""

import json
import sys

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from peft import LoraConfig
from PIL import Image, ImageDraw
from transformers import CLIPTextModel, CLIPTokenizer

import fixture

torch.set_grad_enabled(True)

PIPELINES = fixture.folder() / "../../../../pipelines/tests/parity"
STEPS = 10
BATCH = 2
SIZE = 32
CASES = {
    "prior": {"lr_scheduler": "constant", "prior": 0.7},
    "captions": {"lr_scheduler": "linear", "warmup": 2, "accumulation": 2, "prediction_type": "v_prediction"},
}
CAPTIONS = ["a sks thing", "a thing", "a sks star", "a star", "", "a large red circle"]
# Width and height of pictures, for each of which masks are drawn.
MASKS = [[32, 32], [64, 40], [7, 9], [1, 3]]
MASKS_EACH = 16

tensors = {}
pictures = torch.rand((6, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(12)) * 2 - 1
tensors["pictures"] = pictures


def randint(low, high):
    return torch.randint(low, high + 1, (1,)).item()


def random_mask(im_shape, ratio=1):
    mask = Image.new("L", im_shape, 0)
    draw = ImageDraw.Draw(mask)
    size = (randint(0, int(im_shape[0] * ratio)), randint(0, int(im_shape[1] * ratio)))
    limits = (im_shape[0] - size[0] // 2, im_shape[1] - size[1] // 2)
    center = (randint(size[0] // 2, limits[0]), randint(size[1] // 2, limits[1]))
    draw_type = randint(0, 1)
    box = (center[0] - size[0] // 2, center[1] - size[1] // 2, center[0] + size[0] // 2, center[1] + size[1] // 2)
    if draw_type == 0:
        draw.rectangle(box, fill=255)
    else:
        draw.ellipse(box, fill=255)
    return (torch.from_numpy(np.array(mask)).float() / 255 >= 0.5).float()[None]


def run(name, case):
    folder = PIPELINES / "text_to_image/sd1"
    unet = UNet2DConditionModel.from_pretrained(PIPELINES / "inpainting/sd1_unet").requires_grad_(False)
    vae = AutoencoderKL.from_pretrained(folder / "vae").requires_grad_(False)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").requires_grad_(False)
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    if "prediction_type" in case:
        scheduler.register_to_config(prediction_type=case["prediction_type"])
    torch.manual_seed(11)
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
    trained = {f"unet.{key.replace('.default', '')}": value for key, value in unet.named_parameters() if value.requires_grad}
    for key, value in trained.items():
        tensors[f"{name}/start/{key}"] = value.detach().clone()
    optimizer = torch.optim.AdamW(trained.values(), lr=5e-3, weight_decay=1e-2, eps=1e-8, foreach=False)
    schedule = get_scheduler(case["lr_scheduler"], optimizer, num_warmup_steps=case.get("warmup", 0), num_training_steps=STEPS)
    accumulation = case.get("accumulation", 1)
    torch.manual_seed(42)
    losses, digests, batch = [], [], 0
    for _ in range(STEPS):
        total = 0.0
        for _ in range(accumulation):
            indices = [(batch * BATCH + i) % 6 for i in range(BATCH)]
            batch += 1
            masks = torch.stack([random_mask((SIZE, SIZE)) for _ in indices])
            masked_pictures = pictures[indices] * (masks < 0.5)
            latents = vae.encode(pictures[indices]).latent_dist.sample() * vae.config.scaling_factor
            masked_latents = vae.encode(masked_pictures).latent_dist.sample() * vae.config.scaling_factor
            # The script's VAE halves pictures three times, this one twice.
            masks = F.interpolate(masks, size=latents.shape[2:])
            # Not randn_like: the VAE leaves its channels last, where torch fills the same shape with other numbers.
            noise = torch.randn(latents.shape)
            timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (BATCH,)).long()
            noisy = scheduler.add_noise(latents, noise, timesteps)
            ids = tokenizer(
                [CAPTIONS[i] for i in indices], max_length=tokenizer.model_max_length, padding="max_length", truncation=True, return_tensors="pt"
            ).input_ids
            prediction = unet(torch.cat([noisy, masks, masked_latents], dim=1), timesteps, text_encoder(ids)[0]).sample
            target = noise if scheduler.config.prediction_type == "epsilon" else scheduler.get_velocity(latents, noise, timesteps)
            if "prior" in case:
                prediction, prior_prediction = torch.chunk(prediction, 2, dim=0)
                target, prior_target = torch.chunk(target, 2, dim=0)
                loss = F.mse_loss(prediction.float(), target.float(), reduction="none").mean([1, 2, 3]).mean()
                loss = loss + case["prior"] * F.mse_loss(prior_prediction.float(), prior_target.float(), reduction="mean")
            else:
                loss = F.mse_loss(prediction.float(), target.float(), reduction="mean")
            total += loss.item()
            (loss / accumulation).backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(total / accumulation)
        digests.append(fixture.digest(trained.values()))
    tensors[f"{name}/losses"] = torch.tensor(losses, dtype=torch.float64)
    tensors[f"{name}/digests"] = torch.tensor(digests, dtype=torch.float64)
    for key, value in trained.items():
        tensors[f"{name}/end/{key}"] = value.detach().clone()


for name, case in CASES.items():
    run(name, case)
    print(name, tensors[f"{name}/losses"].tolist(), file=sys.stderr)
for width, height in MASKS:
    torch.manual_seed(5)
    masks = [random_mask((width, height)) for _ in range(MASKS_EACH)]
    tensors[f"masks/{width}x{height}"] = torch.stack(masks).to(torch.uint8)
fixture.save(tensors)
settings = {"captions": CAPTIONS, "batch": BATCH, "masks": MASKS, "cases": CASES}
(fixture.folder() / "cases.json").write_text(json.dumps(settings, indent=1) + "\n")
