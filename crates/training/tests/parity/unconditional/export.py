"""Ten steps of diffusers' train_unconditional.py on a tiny model: the arithmetic of the script, with its random numbers in their order; and how a new model of
torch begins."""

import json
import sys

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

import fixture

torch.set_grad_enabled(True)

MODEL = fixture.folder() / "../../../../pipelines/tests/parity/unconditional/ddpm/unet"
STEPS = 10
BATCH = 2
CASES = {
    "epsilon": {"scheduler": "DDPMScheduler", "beta_schedule": "linear", "prediction_type": "epsilon", "lr_scheduler": "cosine", "warmup": 3, "ema": True},
    "sample": {"scheduler": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample", "lr_scheduler": "constant", "accumulation": 2},
    "ddim": {"scheduler": "DDIMScheduler", "beta_schedule": "scaled_linear", "prediction_type": "epsilon", "lr_scheduler": "linear", "warmup": 2},
}
# A size at which each tensor says how it was drawn.
NEW = {
    "sample_size": 16, "block_out_channels": [32, 64], "norm_num_groups": 8, "layers_per_block": 1, "attention_head_dim": 8, "num_class_embeds": 40,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip

tensors = {}
pictures = torch.rand((6, 3, 16, 16), generator=torch.Generator().manual_seed(7)) * 2 - 1
tensors["pictures"] = pictures


def run(name, case):
    model = UNet2DModel.from_pretrained(MODEL).train()
    scheduler_class = {"DDPMScheduler": DDPMScheduler, "DDIMScheduler": DDIMScheduler}[case["scheduler"]]
    scheduler = scheduler_class(num_train_timesteps=1000, beta_schedule=case["beta_schedule"], prediction_type=case["prediction_type"])
    ema = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4) if case.get("ema") else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8, foreach=False)
    accumulation = case.get("accumulation", 1)
    schedule = get_scheduler(case["lr_scheduler"], optimizer=optimizer, num_warmup_steps=case.get("warmup", 0), num_training_steps=STEPS)
    torch.manual_seed(42)
    losses, digests = [], []
    batch = 0
    for step in range(STEPS):
        total = 0.0
        for _ in range(accumulation):
            clean = pictures[[(batch * BATCH + i) % 6 for i in range(BATCH)]]
            batch += 1
            noise = torch.randn(clean.shape)
            timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (BATCH,)).long()
            noisy = scheduler.add_noise(clean, noise, timesteps)
            prediction = model(noisy, timesteps).sample
            if case["prediction_type"] == "epsilon":
                loss = F.mse_loss(prediction.float(), noise.float())
            else:
                alpha = scheduler.alphas_cumprod[timesteps].float().view(-1, 1, 1, 1)
                loss = (alpha / (1 - alpha) * F.mse_loss(prediction.float(), clean.float(), reduction="none")).mean()
            total += loss.item()
            (loss / accumulation).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if ema:
            ema.step(model.parameters())
        losses.append(total / accumulation)
        digests.append(torch.cat([value.detach().flatten() for value in model.parameters()]).double().norm().item())
    tensors[f"{name}/losses"] = torch.tensor(losses, dtype=torch.float64)
    tensors[f"{name}/digests"] = torch.tensor(digests, dtype=torch.float64)
    # Every tenth weight, to keep the file small.
    for index, (key, value) in enumerate(model.named_parameters()):
        tensors[f"{name}/end/unet.{key}"] = value.detach().flatten()[::10].clone()
        if ema:
            tensors[f"{name}/average/unet.{key}"] = ema.shadow_params[index].flatten()[::10].clone()


def beginning():
    torch.manual_seed(1)
    for key, value in UNet2DModel(**NEW).named_parameters():
        tensors[f"new/unet.{key}"] = torch.stack([value.min(), value.max(), value.mean(), value.std(correction=0)]).detach()


def default_config():
    with torch.device("meta"):
        model = UNet2DModel(
            sample_size=64, in_channels=3, out_channels=3, layers_per_block=2, block_out_channels=(128, 128, 256, 256, 512, 512),
            down_block_types=("DownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
        )  # fmt: skip
    print(sum(value.numel() for value in model.parameters()), "weights by default", file=sys.stderr)
    return json.loads(model.to_json_string())


for name, case in CASES.items():
    run(name, case)
    print(name, tensors[f"{name}/losses"].tolist(), file=sys.stderr)
beginning()
fixture.save(tensors)
settings = {"batch": BATCH, "cases": CASES, "new": NEW, "default_config": default_config()}
(fixture.folder() / "cases.json").write_text(json.dumps(settings, indent=1) + "\n")
