"""Ten steps of diffusers' train_controlnet.py and train_controlnet_sdxl.py on tiny models: the arithmetic of the scripts, with their random numbers in their order."""

import json
import sys

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, ControlNetModel, DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import fixture

torch.set_grad_enabled(True)

PIPELINES = fixture.folder() / "../../../../pipelines/tests/parity"
STEPS = 10
BATCH = 2
SIZE = 32
# What is saved of the weights in the end: every so many.
EVERY = 40
CASES = {
    "from_unet": {"model": "text_to_image/sd1", "lr_scheduler": "constant"},
    "from_folder": {
        "model": "text_to_image/sd1", "controlnet": "control_net/sd1", "lr_scheduler": "cosine", "warmup": 3, "accumulation": 2, "max_grad_norm": 0.5,
        "prediction_type": "v_prediction",
    },
    "xl": {"model": "stable_diffusion_xl/base", "controlnet": "control_net/xl", "lr_scheduler": "linear", "warmup": 2},
}  # fmt: skip
CAPTIONS = ["a large red circle", "a star", "", "a small blue square on green"]

tensors = {}
generator = torch.Generator().manual_seed(9)
pictures = torch.rand((4, 3, SIZE, SIZE), generator=generator) * 2 - 1
conditions = torch.rand((4, 3, SIZE, SIZE), generator=generator)
tensors["pictures"], tensors["conditions"] = pictures, conditions


class Texts:
    """What the models are told of captions."""

    def __init__(self, folder):
        self.is_xl = (folder / "text_encoder_2").exists()
        ends, classes = ["", "_2"][: 1 + self.is_xl], [CLIPTextModel, CLIPTextModelWithProjection]
        self.tokenizers = [CLIPTokenizer.from_pretrained(folder / f"tokenizer{end}") for end in ends]
        self.encoders = [kind.from_pretrained(folder / f"text_encoder{end}").requires_grad_(False) for kind, end in zip(classes, ends)]

    def __call__(self, captions):
        states, pooled = [], None
        for tokenizer, encoder in zip(self.tokenizers, self.encoders):
            ids = tokenizer(captions, max_length=tokenizer.model_max_length, padding="max_length", truncation=True, return_tensors="pt").input_ids
            if not self.is_xl:
                return encoder(ids, return_dict=False)[0], {}
            output = encoder(ids, output_hidden_states=True)
            pooled = output[0]
            states.append(output.hidden_states[-2])
        time_ids = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]]).repeat(len(captions), 1)
        return torch.cat(states, dim=-1), {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": time_ids}}


def run(name, case):
    folder = PIPELINES / case["model"]
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").requires_grad_(False)
    vae = AutoencoderKL.from_pretrained(folder / "vae").requires_grad_(False)
    texts = Texts(folder)
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    if "prediction_type" in case:
        scheduler.register_to_config(prediction_type=case["prediction_type"])
    if "controlnet" in case:
        controlnet = ControlNetModel.from_pretrained(PIPELINES / case["controlnet"])
    else:
        torch.manual_seed(11)
        # The tiny VAE halves pictures twice, not three times.
        controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 96))
        case["config"] = {key: value for key, value in controlnet.config.items() if not key.startswith("_")}
        for key, value in controlnet.controlnet_cond_embedding.named_parameters():
            # In half precision, to keep the file small.
            value.data.copy_(value.half())
            tensors[f"{name}/start/controlnet.controlnet_cond_embedding.{key}"] = value.half()
    controlnet.train()
    optimizer = torch.optim.AdamW(controlnet.parameters(), lr=1e-3, weight_decay=1e-2, eps=1e-8, foreach=False)
    schedule = get_scheduler(case["lr_scheduler"], optimizer, num_warmup_steps=case.get("warmup", 0), num_training_steps=STEPS)
    accumulation = case.get("accumulation", 1)
    torch.manual_seed(42)
    losses, digests, batch = [], [], 0
    for _ in range(STEPS):
        total = 0.0
        for _ in range(accumulation):
            indices = [(batch * BATCH + i) % len(CAPTIONS) for i in range(BATCH)]
            batch += 1
            latents = vae.encode(pictures[indices]).latent_dist.sample() * vae.config.scaling_factor
            # Not randn_like: the VAE leaves its channels last, where torch fills the same shape with other numbers.
            noise = torch.randn(latents.shape)
            timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (BATCH,)).long()
            noisy = scheduler.add_noise(latents, noise, timesteps)
            states, added = texts([CAPTIONS[i] for i in indices])
            down, middle = controlnet(noisy, timesteps, encoder_hidden_states=states, controlnet_cond=conditions[indices], return_dict=False, **added)
            prediction = unet(
                noisy, timesteps, encoder_hidden_states=states, down_block_additional_residuals=down, mid_block_additional_residual=middle,
                return_dict=False, **added,
            )[0]  # fmt: skip
            target = noise if scheduler.config.prediction_type == "epsilon" else scheduler.get_velocity(latents, noise, timesteps)
            loss = F.mse_loss(prediction.float(), target.float(), reduction="mean")
            total += loss.item()
            (loss / accumulation).backward()
        torch.nn.utils.clip_grad_norm_(controlnet.parameters(), case.get("max_grad_norm", 1.0))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(total / accumulation)
        digests.append(fixture.digest(controlnet.parameters()))
    tensors[f"{name}/losses"] = torch.tensor(losses, dtype=torch.float64)
    tensors[f"{name}/digests"] = torch.tensor(digests, dtype=torch.float64)
    for key, value in controlnet.named_parameters():
        tensors[f"{name}/end/controlnet.{key}"] = value.detach().flatten()[::EVERY].clone()


for name, case in CASES.items():
    run(name, case)
    print(name, tensors[f"{name}/losses"].tolist(), file=sys.stderr)
fixture.save(tensors)
settings = {"captions": CAPTIONS, "batch": BATCH, "every": EVERY, "cases": CASES}
(fixture.folder() / "cases.json").write_text(json.dumps(settings, indent=1) + "\n")
