"""Noise, targets and losses by the formulae of diffusers' train_text_to_image.py, train_dreambooth.py and train_unconditional.py, and the mask of
cloneofsimo's cli_lora_pti.py, run in torch."""

import json

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

import fixture

SHAPE = (4, 4, 6, 5)
SCHEDULERS = {
    "epsilon": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "epsilon"},
    "v_prediction": {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    "sample": {"beta_schedule": "linear", "prediction_type": "sample"},
}
CASES = [
    {"noise_offset": 0.0, "input_perturbation": 0.0},
    {"noise_offset": 0.1, "input_perturbation": 0.0},
    {"noise_offset": 0.0, "input_perturbation": 0.1},
    {"noise_offset": 0.05, "input_perturbation": 0.2},
]
GAMMA = 5.0
PRIOR_LOSS_WEIGHT = 0.7
TEMPERATURE = 1.5

generator = torch.Generator().manual_seed(11)
latents = torch.randn(SHAPE, generator=generator)
prediction = torch.randn(SHAPE, generator=generator)
mask = torch.rand(4, 1, 48, 40, generator=generator)
mask[:, :, 10:30, 5:20] = 0.0
tensors = {"latents": latents, "prediction": prediction, "mask": mask}


def mse(prediction, target, weights=None):
    if weights is None:
        return F.mse_loss(prediction.float(), target.float(), reduction="mean")
    loss = F.mse_loss(prediction.float(), target.float(), reduction="none")
    return (loss.mean(dim=list(range(1, len(loss.shape)))) * weights).mean()


for kind, config in SCHEDULERS.items():
    scheduler = DDPMScheduler(**config)
    for index, case in enumerate(CASES):
        generator = torch.Generator().manual_seed(100 + index)
        noise = torch.randn(latents.shape, generator=generator)
        if case["noise_offset"]:
            noise += case["noise_offset"] * torch.randn(SHAPE[0], SHAPE[1], 1, 1, generator=generator)
        new_noise = noise
        if case["input_perturbation"]:
            new_noise = noise + case["input_perturbation"] * torch.randn(noise.shape, generator=generator)
        timesteps = torch.randint(0, 1000, (SHAPE[0],), generator=generator)
        noisy = scheduler.add_noise(latents, new_noise, timesteps)
        if kind == "epsilon":
            target = noise
        elif kind == "v_prediction":
            target = scheduler.get_velocity(latents, noise, timesteps)
        else:
            target = latents
        snr = compute_snr(scheduler, timesteps)
        weights = torch.stack([snr, GAMMA * torch.ones_like(timesteps)], dim=1).min(dim=1)[0]
        weights = {"epsilon": weights / snr, "v_prediction": weights / (snr + 1), "sample": weights}[kind]
        name = f"{kind}/{index}"
        tensors |= {f"{name}/timesteps": timesteps, f"{name}/noisy": noisy, f"{name}/target": target}
        tensors[f"{name}/weights"] = weights
        tensors[f"{name}/loss"] = mse(prediction, target)
        tensors[f"{name}/min_snr"] = mse(prediction, target, weights)
        if kind == "sample":
            alpha = scheduler.alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
            tensors[f"{name}/snr"] = (alpha / (1 - alpha) * F.mse_loss(prediction, target, reduction="none")).mean()
        (own, prior), (own_target, prior_target) = torch.chunk(prediction, 2, dim=0), torch.chunk(target, 2, dim=0)
        added = PRIOR_LOSS_WEIGHT * mse(prior, prior_target)
        tensors[f"{name}/prior"] = mse(own, own_target) + added
        tensors[f"{name}/prior_min_snr"] = mse(own, own_target, weights[:2]) + added
        small = F.interpolate(mask, size=SHAPE[-2:], mode="nearest")
        small = (small + 0.01).pow(TEMPERATURE)
        small = small / small.max()
        tensors[f"{name}/masked"] = F.mse_loss(prediction * small, target * small, reduction="none").mean([1, 2, 3]).mean()
fixture.save(tensors)
settings = {"schedulers": SCHEDULERS, "cases": CASES, "gamma": GAMMA, "prior_loss_weight": PRIOR_LOSS_WEIGHT, "temperature": TEMPERATURE}
(fixture.folder() / "cases.json").write_text(json.dumps(settings, indent=1) + "\n")
