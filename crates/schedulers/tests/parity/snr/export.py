"""The reference's signal-to-noise ratios."""

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

import fixture

timesteps = torch.arange(1000)
tensors = {}
for schedule in ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"]:
    tensors[schedule] = compute_snr(DDPMScheduler(beta_schedule=schedule), timesteps)
    tensors[f"{schedule}/alphas_cumprod"] = DDPMScheduler(beta_schedule=schedule).alphas_cumprod
fixture.save(tensors)
