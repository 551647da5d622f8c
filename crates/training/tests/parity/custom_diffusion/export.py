"""Ten steps of diffusers' train_custom_diffusion.py on a tiny model: the arithmetic of the script, with its random numbers in their order, for pictures that fill
their masks. The script lets weight decay act on every token's embedding; here all but the new ones are put back, as its textual_inversion.py does."""

import json
import sys

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor
from diffusers.loaders import AttnProcsLayers
from diffusers.optimization import get_scheduler
from transformers import CLIPTextModel, CLIPTokenizer

import fixture

torch.set_grad_enabled(True)

MODEL = fixture.folder() / "../../../../pipelines/tests/parity/text_to_image/sd1"
STEPS = 10
BATCH = 2
CASES = {
    "keys_and_values": {"tokens": {"<new1>": "circle", "<new2>": "red"}, "all": False, "prior": 0.7, "accumulation": 2, "lr_scheduler": "constant"},
    "all": {"tokens": {"<new1>": "circle"}, "all": True, "lr_scheduler": "linear", "warmup": 2},
}
CAPTIONS = ["photo of a <new1> star", "star", "a <new1>", "a small star", "<new1> on green", "large star"]

tensors = {}
pictures = torch.rand((6, 3, 32, 32), generator=torch.Generator().manual_seed(8)) * 2 - 1
tensors["pictures"] = pictures


def custom_processors(unet, train_q_out):
    processors, state = {}, unet.state_dict()
    for name in unet.attn_processors:
        layer = name.split(".processor")[0]
        if name.endswith("attn1.processor"):
            processors[name] = CustomDiffusionAttnProcessor(train_kv=False, train_q_out=False)
            continue
        weights = {
            "to_k_custom_diffusion.weight": state[layer + ".to_k.weight"],
            "to_v_custom_diffusion.weight": state[layer + ".to_v.weight"],
        }
        if train_q_out:
            weights["to_q_custom_diffusion.weight"] = state[layer + ".to_q.weight"]
            weights["to_out_custom_diffusion.0.weight"] = state[layer + ".to_out.0.weight"]
            weights["to_out_custom_diffusion.0.bias"] = state[layer + ".to_out.0.bias"]
        hidden_size, width = state[layer + ".to_k.weight"].shape
        processors[name] = CustomDiffusionAttnProcessor(train_q_out=train_q_out, hidden_size=hidden_size, cross_attention_dim=width)
        processors[name].load_state_dict(weights)
    unet.set_attn_processor(processors)
    return AttnProcsLayers(unet.attn_processors)


def run(name, case):
    unet = UNet2DConditionModel.from_pretrained(MODEL / "unet").requires_grad_(False)
    vae = AutoencoderKL.from_pretrained(MODEL / "vae").requires_grad_(False)
    text_encoder = CLIPTextModel.from_pretrained(MODEL / "text_encoder").requires_grad_(False)
    tokenizer = CLIPTokenizer.from_pretrained(MODEL / "tokenizer")
    scheduler = DDPMScheduler.from_pretrained(MODEL / "scheduler")
    new = []
    for modifier, initializer in case["tokens"].items():
        assert tokenizer.add_tokens(modifier) == 1
        new.append((tokenizer.convert_tokens_to_ids(modifier), tokenizer.encode(initializer, add_special_tokens=False)[0]))
    text_encoder.resize_token_embeddings(len(tokenizer))
    table = text_encoder.get_input_embeddings().weight.requires_grad_(True)
    for modifier, initializer in new:
        table.data[modifier] = table.data[initializer].clone()
    others = torch.ones((len(tokenizer),), dtype=torch.bool)
    others[[modifier for modifier, _ in new]] = False
    before = table.detach().clone()
    layers = custom_processors(unet, case["all"])
    parameters = [table, *layers.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-2, eps=1e-8, foreach=False)
    accumulation = case.get("accumulation", 1)
    schedule = get_scheduler(case["lr_scheduler"], optimizer=optimizer, num_warmup_steps=case.get("warmup", 0), num_training_steps=STEPS)
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
            ids = tokenizer(
                [CAPTIONS[i] for i in indices], max_length=tokenizer.model_max_length, padding="max_length", truncation=True, return_tensors="pt"
            ).input_ids
            prediction = unet(noisy, timesteps, text_encoder(ids)[0]).sample
            target = noise
            mask = torch.ones((BATCH, 1, *latents.shape[2:]))
            prior_loss = 0.0
            if "prior" in case:
                prediction, prior_prediction = torch.chunk(prediction, 2, dim=0)
                target, prior_target = torch.chunk(target, 2, dim=0)
                mask = torch.chunk(mask, 2, dim=0)[0]
                prior_loss = case["prior"] * F.mse_loss(prior_prediction.float(), prior_target.float(), reduction="mean")
            loss = F.mse_loss(prediction.float(), target.float(), reduction="none")
            loss = ((loss * mask).sum([1, 2, 3]) / mask.sum([1, 2, 3])).mean() + prior_loss
            total += loss.item()
            (loss / accumulation).backward()
            table.grad[others] = 0
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        with torch.no_grad():
            table[others] = before[others]
        losses.append(total / accumulation)
        projections = [value for module in unet.attn_processors.values() for value in module.parameters()]
        digests.append(fixture.digest([table[[modifier]] for modifier, _ in new] + projections))
    tensors[f"{name}/losses"] = torch.tensor(losses, dtype=torch.float64)
    tensors[f"{name}/digests"] = torch.tensor(digests, dtype=torch.float64)
    for (modifier, _), token in zip(new, case["tokens"]):
        tensors[f"{name}/end/text_encoder.token_embedding.{token}"] = table[[modifier]].detach().clone()
    for processor, module in unet.attn_processors.items():
        for key, value in module.named_parameters():
            key = processor.replace("processor", key.replace("_custom_diffusion", ""))
            # Every second weight, to keep the file small.
            tensors[f"{name}/end/unet.{key}"] = value.detach().flatten()[::2].clone()


for name, case in CASES.items():
    run(name, case)
    print(name, tensors[f"{name}/losses"].tolist(), file=sys.stderr)
fixture.save(tensors)
(fixture.folder() / "cases.json").write_text(json.dumps({"captions": CAPTIONS, "batch": BATCH, "cases": CASES}, indent=1) + "\n")
