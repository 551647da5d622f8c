"""Ten steps of a LoRA with the masked loss of cloneofsimo's lora (lora_diffusion/cli_lora_pti.py, loss_step) on a tiny model."""

import sys

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from transformers import CLIPTextModel, CLIPTokenizer

import fixture

torch.set_grad_enabled(True)

MODEL = fixture.folder() / "../../../../pipelines/tests/parity/text_to_image/sd1"
STEPS = 10
BATCH = 2
TEMPERATURE = 1.3

generator = torch.Generator().manual_seed(9)
pictures = torch.rand((BATCH, 3, 32, 32), generator=generator) * 2 - 1
mask = torch.rand((BATCH, 1, 32, 32), generator=generator)
mask[:, :, :, 16:] = 0.0
tensors = {"pictures": pictures, "mask": mask}

unet = UNet2DConditionModel.from_pretrained(MODEL / "unet").requires_grad_(False)
vae = AutoencoderKL.from_pretrained(MODEL / "vae").requires_grad_(False)
text_encoder = CLIPTextModel.from_pretrained(MODEL / "text_encoder").requires_grad_(False)
tokenizer = CLIPTokenizer.from_pretrained(MODEL / "tokenizer")
scheduler = DDPMScheduler.from_pretrained(MODEL / "scheduler")
torch.manual_seed(11)
unet.add_adapter(LoraConfig(r=1, lora_alpha=1, init_lora_weights="gaussian", target_modules=["to_q", "to_v"]))
trained = {f"unet.{key.replace('.default', '')}": value for key, value in unet.named_parameters() if value.requires_grad}
for key, value in trained.items():
    tensors[f"start/{key}"] = value.detach().clone()
optimizer = torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=1e-2, eps=1e-8, foreach=False)
ids = tokenizer(["a star", "circle"], max_length=tokenizer.model_max_length, padding="max_length", truncation=True, return_tensors="pt").input_ids
states = text_encoder(ids)[0].detach()
torch.manual_seed(42)
losses = []
for step in range(STEPS):
    latents = vae.encode(pictures).latent_dist.sample() * vae.config.scaling_factor
    # Not randn_like: the VAE leaves its channels last, where torch fills the same shape with other numbers.
    noise = torch.randn(latents.shape)
    timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (BATCH,)).long()
    prediction = unet(scheduler.add_noise(latents, noise, timesteps), timesteps, states).sample
    weights = F.interpolate(mask.float(), size=prediction.shape[-2:], mode="nearest")
    weights = (weights + 0.01).pow(TEMPERATURE)
    weights = weights / weights.max()
    loss = F.mse_loss((prediction * weights).float(), (noise * weights).float(), reduction="none").mean([1, 2, 3]).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
print(losses, file=sys.stderr)
tensors["losses"] = torch.tensor(losses, dtype=torch.float64)
for key, value in trained.items():
    tensors[f"end/{key}"] = value.detach().clone()
fixture.save(tensors)
