"""Ten steps of diffusers' textual_inversion.py and textual_inversion_sdxl.py on tiny models: the arithmetic of the scripts, with their random numbers in
their order. Instead of the word that the scripts choose by Python's generator, each picture gets a template by its number."""

import ast
import json
import sys

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import fixture

torch.set_grad_enabled(True)

MODELS = fixture.folder() / "../../../../pipelines/tests/parity"
STEPS = 10
BATCH = 2
CASES = {
    "object": {"model": "text_to_image/sd1", "token": "<ring>", "initializer": "circle", "num_vectors": 1, "property": "object", "lr_scheduler": "constant"},
    "style": {
        "model": "text_to_image/sd1", "token": "<dots>", "initializer": "red", "num_vectors": 3, "property": "style", "lr_scheduler": "cosine", "warmup": 3,
        "accumulation": 2,
    },
    "xl": {
        "model": "stable_diffusion_xl/base", "token": "<ring>", "initializer": "circle", "num_vectors": 2, "property": "object", "lr_scheduler": "linear",
        "warmup": 2,
    },
}
TEMPLATES = {
    "object": ["a photo of a {}", "a rendering of a {}", "a cropped photo of the {}", "the photo of a {}"],
    "style": ["a painting in the style of {}", "a rendering in the style of {}", "a cropped painting in the style of {}", "the painting in the style of {}"],
}

tensors = {}
pictures = torch.rand((6, 3, 32, 32), generator=torch.Generator().manual_seed(6)) * 2 - 1
tensors["pictures"] = pictures


class Encoder:
    """A tokenizer, and a text encoder whose table has new rows."""

    def __init__(self, folder, suffix, model_class, case):
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / f"tokenizer{suffix}")
        self.model = model_class.from_pretrained(folder / f"text_encoder{suffix}").requires_grad_(False)
        names = [case["token"]] + [f"{case['token']}_{i}" for i in range(1, case["num_vectors"])]
        assert self.tokenizer.add_tokens(names) == len(names)
        (initializer,) = self.tokenizer.encode(case["initializer"], add_special_tokens=False)
        ids = self.tokenizer.convert_tokens_to_ids(names)
        self.model.resize_token_embeddings(len(self.tokenizer))
        self.table = self.model.get_input_embeddings().weight.requires_grad_(True)
        for i in ids:
            self.table.data[i] = self.table.data[initializer].clone()
        self.new = slice(min(ids), max(ids) + 1)
        self.written_out = " ".join(self.tokenizer.convert_ids_to_tokens(ids))
        self.before = self.table.detach().clone()

    def ids(self, captions):
        length = self.tokenizer.model_max_length
        return self.tokenizer(captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids

    def restore_others(self):
        others = torch.ones((len(self.tokenizer),), dtype=torch.bool)
        others[self.new] = False
        with torch.no_grad():
            self.table[others] = self.before[others]


def run(name, case):
    folder = MODELS / case["model"]
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").requires_grad_(False)
    vae = AutoencoderKL.from_pretrained(folder / "vae").requires_grad_(False)
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    is_xl = (folder / "text_encoder_2").exists()
    encoders = [Encoder(folder, "", CLIPTextModel, case)]
    if is_xl:
        encoders.append(Encoder(folder, "_2", CLIPTextModelWithProjection, case))
    optimizer = torch.optim.AdamW([encoder.table for encoder in encoders], lr=5e-3, weight_decay=1e-2, eps=1e-8, foreach=False)
    accumulation = case.get("accumulation", 1)
    schedule = get_scheduler(case["lr_scheduler"], optimizer, num_warmup_steps=case.get("warmup", 0), num_training_steps=STEPS)
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
            templates = [TEMPLATES[case["property"]][i % 4] for i in indices]
            ids = [encoder.ids([template.format(encoder.written_out) for template in templates]) for encoder in encoders]
            if is_xl:
                first = encoders[0].model(ids[0], output_hidden_states=True).hidden_states[-2]
                second = encoders[1].model(ids[1], output_hidden_states=True)
                states = torch.cat([first, second.hidden_states[-2]], dim=-1)
                time_ids = torch.tensor([[32, 32, 0, 0, 32, 32]] * BATCH, dtype=torch.float32)
                added = {"text_embeds": second[0], "time_ids": time_ids}
                prediction = unet(noisy, timesteps, states, added_cond_kwargs=added).sample
            else:
                prediction = unet(noisy, timesteps, encoders[0].model(ids[0])[0]).sample
            loss = F.mse_loss(prediction.float(), noise.float(), reduction="mean")
            total += loss.item()
            (loss / accumulation).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        for encoder in encoders:
            encoder.restore_others()
        losses.append(total / accumulation)
        digests.append(torch.cat([encoder.table[encoder.new].detach().flatten() for encoder in encoders]).double().norm().item())
    tensors[f"{name}/losses"] = torch.tensor(losses, dtype=torch.float64)
    tensors[f"{name}/digests"] = torch.tensor(digests, dtype=torch.float64)
    for suffix, encoder in zip(["", "_2"], encoders):
        tensors[f"{name}/start/text_encoder{suffix}"] = encoder.before[encoder.new].clone()
        tensors[f"{name}/end/text_encoder{suffix}"] = encoder.table[encoder.new].detach().clone()


def published_templates():
    """The script's own lists, where it is at hand: `python export.py textual_inversion.py`."""
    module = ast.parse(open(sys.argv[1]).read())
    named = {node.targets[0].id: node.value for node in module.body if isinstance(node, ast.Assign)}
    lists = {"object": "imagenet_templates_small", "style": "imagenet_style_templates_small"}
    published = {name: ast.literal_eval(named[of]) for name, of in lists.items()}
    (fixture.folder() / "templates.json").write_text(json.dumps(published, indent=1) + "\n")


if len(sys.argv) > 1:
    published_templates()
for name, case in CASES.items():
    run(name, case)
    print(name, tensors[f"{name}/losses"].tolist(), file=sys.stderr)
fixture.save(tensors)
(fixture.folder() / "cases.json").write_text(json.dumps({"batch": BATCH, "cases": CASES}, indent=1) + "\n")
