"""LoRA files in every layout, and the pictures that diffusers paints with a tiny pipeline when the definition is applied to its weights:
W + alpha / rank * up @ down for every module that a file names.
"""

import json
import shutil
import warnings

import fixture
import numpy as np
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextModel

warnings.filterwarnings("ignore")
# diffusers 0.42.1 looks for `text_model`, which transformers 5 no longer has.
CLIPTextModel.text_model = property(lambda self: self)
here = fixture.folder()
model = here.parent / "text_to_image/sd1"
generator = torch.Generator().manual_seed(3)


def pipeline():
    pipe = StableDiffusionPipeline.from_pretrained(model, safety_checker=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise(*shape):
    return torch.randn(shape, generator=generator) * 0.5


def pair(layer, rank):
    """Factors for a layer: (down, up)."""
    out, inner, *kernel = layer.weight.shape
    return noise(rank, inner, *kernel), noise(out, rank, *[1 for _ in kernel])


def delta(down, up, scaling):
    return scaling * (up.flatten(1) @ down.flatten(1)).reshape(len(up), *down.shape[1:])


def layer_of(pipe, component, name):
    modules = dict(getattr(pipe, component).named_modules())
    return modules[name if component == "unet" else name.removeprefix("text_model.")]


outputs = {}


def paint(name, pipe):
    picture = pipe(
        "a large red circle on a blue background", num_inference_steps=5, guidance_scale=4.0, width=32, height=32,
        generator=torch.Generator().manual_seed(0), output_type="pil",
    ).images[0]  # fmt: skip
    outputs[name] = torch.from_numpy(np.array(picture))


def make(name, layers, rank, scaling):
    """The factors for these layers, a dict by (component, layer); the picture with them goes to the fixture as `name`."""
    pipe, factors = pipeline(), {}
    for component, layer in layers:
        module = layer_of(pipe, component, layer)
        factors[component, layer] = down, up = pair(module, rank)
        module.weight.data += delta(down, up, scaling).reshape(module.weight.shape)
    paint(name, pipe)
    return factors


paint("without", pipeline())
block = "down_blocks.0.attentions.0.transformer_blocks.0"
attention = [("unet", f"{block}.{part}") for part in ("attn1.to_q", "attn1.to_out.0", "attn2.to_k", "attn2.to_v")]
attention += [("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_v"), ("unet", "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_out.0")]
rest = [f"{block}.ff.net.0.proj", "down_blocks.0.attentions.0.proj_in", "time_embedding.linear_1", "conv_in", "conv_out"]
rest += ["down_blocks.0.resnets.0.conv1", "down_blocks.0.resnets.0.time_emb_proj", "down_blocks.0.downsamplers.0.conv", "up_blocks.0.upsamplers.0.conv"]
rest = [("unet", name) for name in rest]
text = [("text_encoder", f"text_model.encoder.layers.{i}.{part}") for i, part in enumerate(["self_attn.q_proj", "self_attn.out_proj", "mlp.fc1"])]


def save(name, tensors, metadata=None):
    safetensors.torch.save_file({key: value.contiguous() for key, value in tensors.items()}, here / name, metadata=metadata)


def kohya(factors, alpha, names={}):
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te"}
    tensors = {}
    for (component, layer), (down, up) in factors.items():
        name = f"{prefixes[component]}_{names.get(layer, layer).replace('.', '_')}"
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(alpha)}
    return tensors


save("kohya.safetensors", kohya(make("kohya", attention + rest + text, 2, 0.75), 1.5))

# The original layout's names of blocks.
names = {
    "conv_in": "input_blocks.0.0",
    f"{block}.attn1.to_q": "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.resnets.0.conv1": "input_blocks.1.0.in_layers.2",
    "down_blocks.0.attentions.0.proj_in": "input_blocks.1.1.proj_in",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0.conv_shortcut": "input_blocks.3.0.skip_connection",
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_v": "middle_block.1.transformer_blocks.0.attn1.to_v",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.1.conv",
    "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_out.0": "output_blocks.3.1.transformer_blocks.0.attn2.to_out.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_out": "out.2",
}
save("kohya_original.safetensors", kohya(make("kohya_original", [("unet", layer) for layer in names], 2, 0.5), 1.0, names))

# diffusers, new: without alphas a factor of one.
new = {}
for (component, layer), (down, up) in make("diffusers", attention + rest + text, 2, 1.0).items():
    new |= {f"{component}.{layer}.lora_A.weight": down, f"{component}.{layer}.lora_B.weight": up}
save("diffusers.safetensors", new)

# diffusers, old: attention processors, and the text encoder's own spelling.
old = {}
for (component, layer), (down, up) in make("diffusers_old", attention + text, 2, 1.0).items():
    if component == "unet":
        attn, part = layer.replace(".to_out.0", ".to_out").rsplit(".", 1)
        old |= {f"unet.{attn}.processor.{part}_lora.down.weight": down, f"unet.{attn}.processor.{part}_lora.up.weight": up}
    else:
        old |= {f"{component}.{layer}.lora_linear_layer.down.weight": down, f"{component}.{layer}.lora_linear_layer.up.weight": up}
save("diffusers_old.safetensors", old)

# PEFT: a folder with its config.
shutil.rmtree(here / "peft", ignore_errors=True)
(here / "peft").mkdir()
peft = {}
for (_, layer), (down, up) in make("peft", attention + rest, 3, 2.0).items():
    peft |= {f"base_model.model.{layer}.lora_A.weight": down, f"base_model.model.{layer}.lora_B.weight": up}
save("peft/adapter_model.safetensors", peft)
config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": [layer for _, layer in attention + rest]}
(here / "peft/adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")

# cloneofsimo: the order in which its _find_modules meets the layers of a diffusers from before 0.15, whose transformer block had the
# feed-forward between the attentions.
pipe = pipeline()
order = []
for name, module in pipe.unet.named_modules():
    if module.__class__.__name__ == "BasicTransformerBlock":
        for part in ("attn1", "ff.net.0", "attn2"):
            inner = module.get_submodule(part)
            order += [("unet", f"{name}.{part}.{other}") for other, child in inner.named_modules() if isinstance(child, torch.nn.Linear)]
flat = []
for down, up in make("cloneofsimo_list", order, 1, 1.0).values():
    flat += [up, down]
torch.save(flat, here / "cloneofsimo_list.pt")
encoder = []
for name, module in pipe.text_encoder.named_modules():
    if module.__class__.__name__ == "CLIPAttention":
        encoder += [("text_encoder", f"text_model.{name}.{other}") for other, child in module.named_modules() if isinstance(child, torch.nn.Linear)]
numbered, metadata = {}, {"unet": json.dumps(["CrossAttention", "Attention", "GEGLU"]), "text_encoder": json.dumps(["CLIPAttention"])}
counts = {"unet": 0, "text_encoder": 0}
for (component, _), (down, up) in make("cloneofsimo", order + encoder, 1, 1.0).items():
    i = counts[component]
    numbered |= {f"{component}:{i}:up": up, f"{component}:{i}:down": down}
    metadata[f"{component}:{i}:rank"] = "1"
    counts[component] += 1
save("cloneofsimo.safetensors", numbered, metadata)

# Two at once, with weights.
pipe = pipeline()
for tensors, strength in ((new, 0.6), (peft, -0.3)):
    for key, down in tensors.items():
        if ".lora_A." in key:
            component, layer = ("unet", key.removeprefix("base_model.model.")) if key.startswith("base_model") else key.split(".", 1)
            module = layer_of(pipe, component, layer.removesuffix(".lora_A.weight"))
            scaling = strength * (2.0 if tensors is peft else 1.0)
            module.weight.data += delta(down, tensors[key.replace(".lora_A.", ".lora_B.")], scaling).reshape(module.weight.shape)
paint("two", pipe)

fixture.save(outputs)
