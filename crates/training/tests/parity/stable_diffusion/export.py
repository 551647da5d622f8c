"""Ten steps of diffusers' scripts for Stable Diffusion (train_text_to_image_lora.py, train_text_to_image.py, train_dreambooth.py,
train_dreambooth_lora.py, and those of them whose names end in _sdxl) on tiny models: the arithmetic of the scripts, with their random numbers in their order."""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel, compute_snr
from peft import LoraConfig
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import fixture

torch.set_grad_enabled(True)

MODELS = fixture.folder() / "../../../../pipelines/tests/parity"
STEPS = 10
CASES = {
    "lora": {"lora": 4, "learning_rate": 1e-2, "accumulation": 2, "snr_gamma": 5.0, "lr_scheduler": "cosine", "warmup": 3},
    "lora_text_encoder": {
        "lora": 3, "text_lora": 3, "learning_rate": 5e-3, "lr_scheduler": "constant", "alpha": 6, "prior": 0.7, "rslora": True,
        "prediction_type": "v_prediction",
    },
    "whole": {"learning_rate": 1e-3, "lr_scheduler": "linear", "warmup": 2, "ema": True, "max_grad_norm": 0.5, "noise_offset": 0.1},
    "whole_text_encoder": {"whole_text": True, "learning_rate": 1e-3, "lr_scheduler": "constant_with_warmup", "warmup": 4, "prior": 1.0, "snr_gamma": 3.0},
    "xl_lora_text_encoders": {
        "model": "stable_diffusion_xl/base", "lora": 4, "text_lora": 3, "learning_rate": 5e-3, "lr_scheduler": "linear", "warmup": 2, "prior": 0.5,
    },
    "xl_whole": {
        "model": "stable_diffusion_xl/base", "learning_rate": 1e-3, "lr_scheduler": "constant", "snr_gamma": 5.0, "accumulation": 2, "noise_offset": 0.05,
    },
}
CAPTIONS = ["a large red circle", "a star", "a small blue square on green", "circle", "", "a photo of sks thing"]
BATCH = 2

tensors = {}
pictures = torch.rand((6, 3, 32, 32), generator=torch.Generator().manual_seed(5)) * 2 - 1
tensors["pictures"] = pictures
# Height and width of the files, and top and left of the crops.
SIZES, CROPS = [(32, 40), (48, 32)], [(0, 8), (5, 0)]


def name_of(component, name):
    # transformers 5 leaves out a part of the name that files have.
    is_text = component.startswith("text_encoder") and not name.startswith(("text_model.", "text_projection."))
    inner = "text_model." if is_text else ""
    return f"{component}.{inner}{name.replace('.default', '')}"


def add_lora(model, component, rank, case, targets, name):
    torch.manual_seed(11)
    config = LoraConfig(
        r=rank, lora_alpha=case.get("alpha", rank), init_lora_weights="gaussian", target_modules=targets, use_rslora=case.get("rslora", False)
    )
    model.requires_grad_(False)
    model.add_adapter(config)
    trained = {name_of(component, key): value for key, value in model.named_parameters() if value.requires_grad}
    for key, value in trained.items():
        tensors[f"{name}/start/{key}"] = value.detach().clone()
    return trained


def tokenize(tokenizer, captions):
    return tokenizer(captions, max_length=tokenizer.model_max_length, padding="max_length", truncation=True, return_tensors="pt").input_ids


def encode(tokenizers, encoders, captions):
    """What the UNet is given of the captions, and besides."""
    ids = [tokenize(tokenizer, captions) for tokenizer in tokenizers]
    if len(encoders) == 1:
        return encoders[0](ids[0], return_dict=False)[0], None
    outputs = [encoder(tokens, output_hidden_states=True) for encoder, tokens in zip(encoders, ids)]
    time_ids = torch.tensor([[*SIZES[i % 2], *CROPS[i % 2], 32, 32] for i in range(len(captions))], dtype=torch.float32)
    states = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    return states, {"text_embeds": outputs[1][0], "time_ids": time_ids}


def run(name, case):
    model = MODELS / case.get("model", "text_to_image/sd1")
    unet = UNet2DConditionModel.from_pretrained(model / "unet").train()
    vae = AutoencoderKL.from_pretrained(model / "vae").requires_grad_(False)
    text_encoder = CLIPTextModel.from_pretrained(model / "text_encoder").requires_grad_(False)
    encoders, tokenizers = {"text_encoder": text_encoder}, [CLIPTokenizer.from_pretrained(model / "tokenizer")]
    if (model / "text_encoder_2").exists():
        encoders["text_encoder_2"] = CLIPTextModelWithProjection.from_pretrained(model / "text_encoder_2").requires_grad_(False)
        tokenizers.append(CLIPTokenizer.from_pretrained(model / "tokenizer_2"))
    scheduler = DDPMScheduler.from_pretrained(model / "scheduler")
    if "prediction_type" in case:
        scheduler.register_to_config(prediction_type=case["prediction_type"])
    trained = {}
    if "lora" in case:
        trained |= add_lora(unet, "unet", case["lora"], case, ["to_k", "to_q", "to_v", "to_out.0"], name)
        if "text_lora" in case:
            for component, encoder in encoders.items():
                trained |= add_lora(encoder, component, case["text_lora"], case, ["q_proj", "k_proj", "v_proj", "out_proj"], name)
    else:
        unet.requires_grad_(True)
        trained |= {name_of("unet", key): value for key, value in unet.named_parameters()}
        if case.get("whole_text"):
            text_encoder.requires_grad_(True)
            trained |= {name_of("text_encoder", key): value for key, value in text_encoder.named_parameters()}
    optimizer = torch.optim.AdamW(trained.values(), lr=case["learning_rate"], weight_decay=1e-2, eps=1e-8, foreach=False)
    accumulation = case.get("accumulation", 1)
    schedule = get_scheduler(
        case["lr_scheduler"], optimizer, num_warmup_steps=case.get("warmup", 0), num_training_steps=STEPS
    )
    ema = EMAModel(trained.values()) if case.get("ema") else None
    torch.manual_seed(42)
    losses, digests = [], []
    batch = 0
    for step in range(STEPS):
        total = 0.0
        for _ in range(accumulation):
            indices = [(batch * BATCH + i) % 6 for i in range(BATCH)]
            batch += 1
            latents = vae.encode(pictures[indices]).latent_dist.sample() * vae.config.scaling_factor
            # Not randn_like: the VAE leaves its channels last, where torch fills the same shape with other numbers.
            noise = torch.randn(latents.shape)
            if case.get("noise_offset"):
                noise += case["noise_offset"] * torch.randn((latents.shape[0], latents.shape[1], 1, 1))
            timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (BATCH,)).long()
            noisy = scheduler.add_noise(latents, noise, timesteps)
            states, added = encode(tokenizers, list(encoders.values()), [CAPTIONS[i] for i in indices])
            if scheduler.config.prediction_type == "epsilon":
                target = noise
            else:
                target = scheduler.get_velocity(latents, noise, timesteps)
            prediction = unet(noisy, timesteps, states, added_cond_kwargs=added, return_dict=False)[0]
            prior_loss = None
            if "prior" in case:
                prediction, prior_prediction = torch.chunk(prediction, 2, dim=0)
                target, prior_target = torch.chunk(target, 2, dim=0)
                prior_loss = F.mse_loss(prior_prediction.float(), prior_target.float(), reduction="mean")
            if "snr_gamma" not in case:
                loss = F.mse_loss(prediction.float(), target.float(), reduction="mean")
            else:
                snr = compute_snr(scheduler, timesteps)
                weights = torch.stack([snr, case["snr_gamma"] * torch.ones_like(timesteps)], dim=1).min(dim=1)[0] / snr
                weights = weights[: prediction.shape[0]]
                loss = F.mse_loss(prediction.float(), target.float(), reduction="none")
                loss = (loss.mean(dim=list(range(1, len(loss.shape)))) * weights).mean()
            if prior_loss is not None:
                loss = loss + case["prior"] * prior_loss
            total += loss.item()
            (loss / accumulation).backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), case.get("max_grad_norm", 1.0))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if ema:
            ema.step(trained.values())
        losses.append(total / accumulation)
        values = torch.cat([value.detach().flatten().double() for value in trained.values()])
        digests.append([values.sum().item(), values.square().sum().sqrt().item()])
    tensors[f"{name}/losses"] = torch.tensor(losses, dtype=torch.float64)
    tensors[f"{name}/digests"] = torch.tensor(digests, dtype=torch.float64)
    # The whole of a LoRA; of all weights every hundredth, to keep the file small.
    every = 1 if "lora" in case else 100
    ends = list(zip(trained.items(), ema.shadow_params)) if ema else [(item, None) for item in trained.items()]
    for (key, value), average in ends:
        tensors[f"{name}/end/{key}"] = value.detach().flatten()[::every].clone()
        if average is not None:
            tensors[f"{name}/average/{key}"] = average.flatten()[::every].clone()


for name, case in CASES.items():
    run(name, case)
    print(name, tensors[f"{name}/losses"].tolist(), file=sys.stderr)
fixture.save(tensors)
(fixture.folder() / "cases.json").write_text(json.dumps({"captions": CAPTIONS, "batch": BATCH, "cases": CASES}, indent=1) + "\n")
