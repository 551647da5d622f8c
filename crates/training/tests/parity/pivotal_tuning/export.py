"""Pivotal tuning on a tiny model: ten steps of a new word as in diffusers' textual_inversion.py, then ten of a LoRA on the UNet, for captions that have the word as it
has become, as in train_text_to_image_lora.py."""

import json
import sys

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from peft import LoraConfig
from transformers import CLIPTextModel, CLIPTokenizer

import fixture

torch.set_grad_enabled(True)

MODEL = fixture.folder() / "../../../../pipelines/tests/parity/text_to_image/sd1"
STEPS = 10
BATCH = 2
TOKEN, INITIALIZER, NUM_VECTORS = "<ring>", "circle", 2
CAPTIONS = ["a photo of a <ring>", "a rendering of a <ring>", "the photo of a <ring>", "a large <ring> on green", "<ring>", "a small star beside a <ring>"]
# The script for words clips nothing.
CASES = {
    "word": {"learning_rate": 5e-3, "lr_scheduler": "constant", "max_grad_norm": 1e9},
    "lora": {"learning_rate": 1e-2, "lr_scheduler": "cosine", "warmup": 3, "accumulation": 2},
}

tensors = {}
pictures = torch.rand((6, 3, 32, 32), generator=torch.Generator().manual_seed(15)) * 2 - 1
tensors["pictures"] = pictures

unet = UNet2DConditionModel.from_pretrained(MODEL / "unet").requires_grad_(False)
vae = AutoencoderKL.from_pretrained(MODEL / "vae").requires_grad_(False)
scheduler = DDPMScheduler.from_pretrained(MODEL / "scheduler")
tokenizer = CLIPTokenizer.from_pretrained(MODEL / "tokenizer")
text_encoder = CLIPTextModel.from_pretrained(MODEL / "text_encoder").requires_grad_(False)

names = [TOKEN] + [f"{TOKEN}_{i}" for i in range(1, NUM_VECTORS)]
assert tokenizer.add_tokens(names) == len(names)
(initializer,) = tokenizer.encode(INITIALIZER, add_special_tokens=False)
ids = tokenizer.convert_tokens_to_ids(names)
text_encoder.resize_token_embeddings(len(tokenizer))
table = text_encoder.get_input_embeddings().weight
with torch.no_grad():
    table[ids] = table[initializer].clone()
before = table.detach().clone()
new = slice(min(ids), max(ids) + 1)


def encode(captions):
    texts = [caption.replace(TOKEN, " ".join(names)) for caption in captions]
    tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt").input_ids
    return text_encoder(tokens)[0]


def restore_others():
    others = torch.ones((len(tokenizer),), dtype=torch.bool)
    others[new] = False
    with torch.no_grad():
        table[others] = before[others]


def run(name, optimized, weights, after_step):
    """Trains `optimized`; `weights` are those that are compared, by name."""
    case = CASES[name]
    optimizer = torch.optim.AdamW(optimized, lr=case["learning_rate"], weight_decay=1e-2, eps=1e-8, foreach=False)
    accumulation = case.get("accumulation", 1)
    schedule = get_scheduler(case["lr_scheduler"], optimizer, num_warmup_steps=case.get("warmup", 0), num_training_steps=STEPS)
    for key, value in weights().items():
        tensors[f"{name}/start/{key}"] = value.detach().clone()
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
            timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (BATCH,)).long()
            noisy = scheduler.add_noise(latents, noise, timesteps)
            prediction = unet(noisy, timesteps, encode([CAPTIONS[i] for i in indices])).sample
            loss = F.mse_loss(prediction.float(), noise.float(), reduction="mean")
            total += loss.item()
            (loss / accumulation).backward()
        torch.nn.utils.clip_grad_norm_(optimized, case.get("max_grad_norm", 1.0))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        after_step()
        losses.append(total / accumulation)
        digests.append(fixture.digest(list(weights().values())))
    tensors[f"{name}/losses"] = torch.tensor(losses, dtype=torch.float64)
    tensors[f"{name}/digests"] = torch.tensor(digests, dtype=torch.float64)
    for key, value in weights().items():
        tensors[f"{name}/end/{key}"] = value.detach().flatten().clone()
    print(name, losses, file=sys.stderr)


table.requires_grad_(True)
run("word", [table], lambda: {f"text_encoder.token_embedding.{TOKEN}": table[new]}, restore_others)
table.requires_grad_(False)

torch.manual_seed(11)
unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
lora = {f"unet.{key.replace('.default', '')}": value for key, value in unet.named_parameters() if value.requires_grad}
run("lora", list(lora.values()), lambda: lora, lambda: None)

fixture.save(tensors)
settings = {"captions": CAPTIONS, "batch": BATCH, "token": TOKEN, "initializer": INITIALIZER, "num_vectors": NUM_VECTORS, "cases": CASES}
(fixture.folder() / "cases.json").write_text(json.dumps(settings, indent=1) + "\n")
