"""LoRA files of every kind for tiny models, and what the models compute with them: by the definition, and by PEFT's own layers.

The models are those of the models crate's fixtures.
"""

import json
import shutil
import warnings

import fixture
import safetensors.torch
import torch
from diffusers import UNet2DConditionModel
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

warnings.filterwarnings("ignore")
here = fixture.folder()
models = here.parents[3] / "models/tests/parity"
generator = torch.Generator().manual_seed(7)


def noise(*shape, scale=1.0):
    return torch.randn(shape, generator=generator) * scale


def state_dict(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


class UNet:
    """A tiny UNet with its inputs."""

    def __init__(self, name):
        self.tensors = safetensors.torch.load_file(models / f"unet_2d_condition/{name}.safetensors")
        config = json.loads((models / "unet_2d_condition/configs.json").read_text())[name]
        self.build = lambda: UNet2DConditionModel.from_config(config)
        self.given = {"added_cond_kwargs": {key: self.tensors[key] for key in ("text_embeds", "time_ids")}} if name == "sdxl" else {}
        self.reset()

    def reset(self):
        self.model = self.build().eval()
        self.model.load_state_dict(state_dict(self.tensors, "model."))
        return self.model

    def run(self, model=None):
        inputs = [self.tensors[key] for key in ("sample", "timesteps", "text")]
        return (model or self.model)(inputs[0], inputs[1][0], inputs[2], **self.given).sample


class Text:
    """A tiny text encoder with its input."""

    def __init__(self, name, model_class, **changes):
        self.tensors = safetensors.torch.load_file(models / "clip_text/clip_text.safetensors")
        tiny = dict(
            vocab_size=60, hidden_size=24, intermediate_size=32, max_position_embeddings=16, bos_token_id=0, pad_token_id=1
        )
        self.model = model_class(CLIPTextConfig(**tiny, **changes)).eval()
        weights = state_dict(self.tensors, f"{name}.model.")
        bare = not any(key.startswith("text_model.") for key in self.model.state_dict())
        self.model.load_state_dict({key.removeprefix("text_model.") if bare else key: value for key, value in weights.items()})

    def run(self):
        return self.model(self.tensors["input_ids"])

    def layer(self, name):
        modules = dict(self.model.named_modules())
        return modules.get(name) or modules[name.removeprefix("text_model.")]


def layer_of(model, name):
    return dict(model.named_modules())[name]


def kernel_of(layer):
    return tuple(layer.weight.shape[2:])


# What each kind is: the tensors that a file has for a layer, and the delta by the definition.


def lora(layer, rank, flat=False, strength=0.5):
    """A pair of matrices, or for convolutions of kernels; `flat` writes a convolution of one pixel as matrices."""
    out, inner = layer.weight.shape[:2]
    kernel = () if flat else kernel_of(layer)
    down, up = noise(rank, inner, *kernel, scale=strength), noise(out, rank, *[1 for _ in kernel], scale=strength)
    alpha = torch.tensor(rank * 0.75)
    delta = 0.75 * (up.flatten(1) @ down.flatten(1)).reshape(layer.weight.shape)
    return {"lora_down.weight": down, "lora_up.weight": up, "alpha": alpha}, delta


def lora_mid(layer, rank):
    out, inner = layer.weight.shape[:2]
    kernel = kernel_of(layer) or (1, 1)
    down, mid, up = noise(rank, inner, 1, 1, scale=0.6), noise(rank, rank, *kernel, scale=0.5), noise(out, rank, 1, 1, scale=0.6)
    delta = 1.5 / rank * torch.einsum("op, pqhw, qi -> oihw", up[:, :, 0, 0], mid, down[:, :, 0, 0])
    tensors = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, "alpha": torch.tensor(1.5)}
    return tensors, delta.reshape(layer.weight.shape)


def loha(layer, rank, core=False):
    out, inner = layer.weight.shape[:2]
    kernel = kernel_of(layer)
    tensors, factors = {}, []
    for i in (1, 2):
        if core:
            t, a, b = noise(rank, rank, *kernel, scale=0.6), noise(rank, out), noise(rank, inner)
            tensors |= {f"hada_t{i}": t, f"hada_w{i}_a": a, f"hada_w{i}_b": b}
            factors.append(torch.einsum("ijkl, jr, ip -> prkl", t, b, a))
        else:
            columns = layer.weight[0].numel()
            a, b = noise(out, rank), noise(rank, columns, scale=0.6)
            tensors |= {f"hada_w{i}_a": a, f"hada_w{i}_b": b}
            factors.append((a @ b).reshape(layer.weight.shape))
    return tensors | {"alpha": torch.tensor(0.5 * rank)}, 0.5 * factors[0] * factors[1]


def lokr(layer, rank, split, left="whole", right="whole"):
    """`split` is (out, in) of the left factor."""
    out, inner = layer.weight.shape[:2]
    kernel = kernel_of(layer)
    (out_1, in_1), (out_2, in_2) = split, (out // split[0], inner // split[1])
    tensors, scale = {}, 1.0
    if left == "whole":
        w1 = tensors["lokr_w1"] = noise(out_1, in_1, scale=0.5)
    else:
        a, b = noise(out_1, rank, scale=0.6), noise(rank, in_1, scale=0.6)
        tensors |= {"lokr_w1_a": a, "lokr_w1_b": b}
        w1 = a @ b
    if right == "whole":
        w2 = tensors["lokr_w2"] = noise(out_2, in_2, *kernel, scale=0.5)
    elif right == "core":
        t, a, b = noise(rank, rank, *kernel, scale=0.5), noise(rank, out_2), noise(rank, in_2)
        tensors |= {"lokr_t2": t, "lokr_w2_a": a, "lokr_w2_b": b}
        w2 = torch.einsum("ijkl, ip, jr -> prkl", t, a, b).contiguous()
    else:
        columns = in_2 * (torch.Size(kernel).numel() if kernel else 1)
        a, b = noise(out_2, rank, scale=0.6), noise(rank, columns, scale=0.6)
        tensors |= {"lokr_w2_a": a, "lokr_w2_b": b}
        w2 = (a @ b).reshape(out_2, in_2, *kernel)
    if (left, right) != ("whole", "whole"):
        tensors["alpha"], scale = torch.tensor(0.8 * rank), 0.8
    whole = torch.kron(w1[:, :, None, None], w2) if kernel else torch.kron(w1, w2)
    return tensors, scale * whole.reshape(layer.weight.shape)


def dora(change, layer, channels="output"):
    """DoRA over any other kind; LyCORIS' shapes of the lengths."""
    tensors, delta = change
    axis = 0 if channels == "output" else 1
    shape = [1] * layer.weight.dim()
    shape[axis] = layer.weight.shape[axis]
    scale = noise(*shape).abs() + 0.5
    changed = layer.weight + delta
    others = [i for i in range(changed.dim()) if i != axis]
    changed = changed / changed.pow(2).sum(others, keepdim=True).sqrt() * scale
    return tensors | {"dora_scale": scale}, changed - layer.weight


def full(layer, bias=True):
    tensors = {"diff": noise(*layer.weight.shape, scale=0.1)}
    if bias:
        tensors["diff_b"] = noise(layer.weight.shape[0], scale=0.3)
    return tensors, tensors["diff"]


def kohya(name):
    return "lora_unet_" + name.replace(".", "_")


# Of sd1: attention, feed-forward, time; convolutions of one pixel; kernels of 3x3, one with a stride.
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
LINEAR = [
    f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn1.to_out.0", f"{BLOCK}.attn2.to_k", f"{BLOCK}.ff.net.0.proj", f"{BLOCK}.ff.net.2",
    "time_embedding.linear_1", "down_blocks.0.resnets.0.time_emb_proj",
]  # fmt: skip
POINT = ["down_blocks.0.attentions.0.proj_in", "mid_block.attentions.0.proj_out", "down_blocks.1.resnets.0.conv_shortcut"]
KERNEL = ["conv_in", "conv_out", "down_blocks.0.resnets.0.conv1", "down_blocks.0.downsamplers.0.conv", "up_blocks.0.upsamplers.0.conv"]

sd1 = UNet("sd1")
get = lambda name: layer_of(sd1.model, name)
kinds = {
    "plain": {name: lora(get(name), 1 + i % 4) for i, name in enumerate(LINEAR)}
    | {POINT[0]: lora(get(POINT[0]), 2, flat=True), POINT[1]: lora(get(POINT[1]), 3), POINT[2]: lora(get(POINT[2]), 2, flat=True)},
    "locon": {name: lora(get(name), 2 + i % 3, strength=0.4) for i, name in enumerate(KERNEL)},
    "locon_mid": {name: lora_mid(get(name), 2 + i % 2) for i, name in enumerate(KERNEL + LINEAR[:2] + POINT[:1])},
    "loha": {name: loha(get(name), 2, core=False) for name in LINEAR[:4] + POINT[:2] + KERNEL[1:3]}
    | {name: loha(get(name), 3, core=True) for name in KERNEL[3:]},
    "lokr": {
        LINEAR[0]: lokr(get(LINEAR[0]), 2, (2, 4)),
        LINEAR[2]: lokr(get(LINEAR[2]), 2, (4, 3), right="product"),
        LINEAR[3]: lokr(get(LINEAR[3]), 2, (8, 4), left="product"),
        LINEAR[4]: lokr(get(LINEAR[4]), 3, (2, 8), left="product", right="product"),
        POINT[0]: lokr(get(POINT[0]), 2, (4, 2), right="product"),
        KERNEL[0]: lokr(get(KERNEL[0]), 2, (2, 2)),
        KERNEL[2]: lokr(get(KERNEL[2]), 2, (2, 4), right="product"),
        KERNEL[3]: lokr(get(KERNEL[3]), 2, (4, 2), right="core"),
        KERNEL[4]: lokr(get(KERNEL[4]), 2, (4, 4), left="product", right="core"),
    },
    "dora": {name: dora(lora(get(name), 2), get(name)) for name in LINEAR[:3] + POINT[:1] + KERNEL[2:4]}
    | {
        LINEAR[3]: dora(lora(get(LINEAR[3]), 2), get(LINEAR[3]), "input"),
        KERNEL[4]: dora(lora(get(KERNEL[4]), 2), get(KERNEL[4]), "input"),
        LINEAR[4]: dora(lokr(get(LINEAR[4]), 2, (2, 8), right="product"), get(LINEAR[4])),
        LINEAR[5]: dora(loha(get(LINEAR[5]), 2), get(LINEAR[5])),
    },
    "full": {name: full(get(name)) for name in KERNEL[:3] + POINT[:1] + LINEAR[3:6]}
    # A bias where the layer has none.
    | {LINEAR[0]: full(get(LINEAR[0]))},
}

outputs = {}


def apply(model, deltas):
    for layer, (tensors, delta) in deltas:
        layer.weight.data += delta
        if "diff_b" in tensors:
            bias = torch.zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias.data
            layer.bias = torch.nn.Parameter(bias + tensors["diff_b"])


def write(name, tensors):
    fixture.save(tensors, name)


for kind, changes in kinds.items():
    write(kind, {f"{kohya(name)}.{part}": tensor for name, (tensors, _) in changes.items() for part, tensor in tensors.items()})
    model = sd1.reset()
    apply(model, [(layer_of(model, name), change) for name, change in changes.items()])
    outputs[f"{kind}.output"] = sd1.run()

# Two at once, with weights.
model = sd1.reset()
for kind, strength in (("plain", 0.7), ("locon", -0.4), ("lokr", 0.5)):
    for name, (tensors, delta) in kinds[kind].items():
        layer_of(model, name).weight.data += strength * delta
outputs["several.output"] = sd1.run()

# In other element types; the values are those that the file holds.
changes = {name: lora(get(name), 2) for name in LINEAR[:4] + POINT[:2]}
model = sd1.reset()
tensors = {}
for i, (name, (parts, _)) in enumerate(changes.items()):
    dtype = [torch.float16, torch.bfloat16, torch.float64][i % 3]
    parts = {part: tensor.to(dtype) for part, tensor in parts.items()}
    tensors |= {f"{kohya(name)}.{part}": tensor for part, tensor in parts.items()}
    down, up = (parts[f"lora_{half}.weight"].float().flatten(1) for half in ("down", "up"))
    layer = layer_of(model, name)
    layer.weight.data += 0.75 * (up @ down).reshape(layer.weight.shape)
write("dtypes", tensors)
outputs["dtypes.output"] = sd1.run()


# PEFT's own layers, as PEFT writes them.


def random_adapter(model, scale):
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" in name or "hada_" in name or "lokr_" in name:
            values = noise(*parameter.shape, scale=scale)
            parameter.data.copy_(values.abs() + 0.5 if "magnitude" in name else values)


def write_peft(name, model, config, adapter="default"):
    folder = here / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    tensors = get_peft_model_state_dict(model, adapter_name=adapter)
    prefix = "" if next(iter(tensors)).startswith("base_model") else "base_model.model."
    tensors = {prefix + key: value.contiguous() for key, value in tensors.items()}
    safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors")
    config.save_pretrained(folder)
    # PEFT writes a set, in any order.
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


targets = LINEAR + POINT + KERNEL
peft_kinds = {
    "peft_rslora": LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=targets, rank_pattern={"conv_in": 2}, alpha_pattern={"conv_in": 5}),
    "peft_dora": LoraConfig(r=2, lora_alpha=3, use_dora=True, target_modules=targets),
    "peft_loha": LoHaConfig(r=2, alpha=3, use_effective_conv2d=True, target_modules=targets),
    "peft_lokr": LoKrConfig(r=2, alpha=2, use_effective_conv2d=True, decompose_both=True, decompose_factor=2, target_modules=targets),
    "peft_lokr_plain": LoKrConfig(r=2, alpha=2, target_modules=targets),
}
for name, config in peft_kinds.items():
    model = get_peft_model(sd1.reset(), config)
    random_adapter(model, 0.4)
    write_peft(name, model, config)
    outputs[f"{name}.output"] = sd1.run(model.eval())

# Two DoRAs and a plain LoRA at once with weights, as diffusers sets them, in two orders.
model = sd1.reset()
for adapter in ("first", "second", "third"):
    is_dora = adapter != "third"
    model.add_adapter(LoraConfig(r=2, lora_alpha=2, use_dora=is_dora, target_modules=LINEAR[:3] + KERNEL[2:4]), adapter)
random_adapter(model, 0.4)
for adapter in ("first", "second", "third"):
    write_peft(f"dora_{adapter}", model, model.peft_config[adapter], adapter)
model.set_adapters(["first", "second"], [0.7, 0.5])
outputs["two_doras.output"] = sd1.run()
model.set_adapters(["third", "second", "first"], [0.6, 0.5, 0.7])
outputs["two_doras_and_a_lora.output"] = sd1.run()

# SDXL: the original layout's names of blocks in kohya's spelling, and both text encoders.
sdxl = UNet("sdxl")
first = Text("legacy", CLIPTextModel, hidden_act="quick_gelu", eos_token_id=2, num_hidden_layers=3, num_attention_heads=2)
second = Text(
    "projection", CLIPTextModelWithProjection, hidden_act="gelu", eos_token_id=57, projection_dim=20, num_attention_heads=4,
    num_hidden_layers=2,
)  # fmt: skip
names = {
    "time_embed_0": "time_embedding.linear_1",
    "label_emb_0_0": "add_embedding.linear_1",
    "label_emb_0_2": "add_embedding.linear_2",
    "input_blocks_0_0": "conv_in",
    "input_blocks_2_0_op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks_3_0_in_layers_2": "down_blocks.1.resnets.0.conv1",
    "input_blocks_3_0_emb_layers_1": "down_blocks.1.resnets.0.time_emb_proj",
    "input_blocks_3_1_transformer_blocks_0_attn2_to_k": "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    "input_blocks_5_1_transformer_blocks_1_attn1_to_out_0": "down_blocks.2.attentions.0.transformer_blocks.1.attn1.to_out.0",
    "middle_block_0_out_layers_3": "mid_block.resnets.0.conv2",
    "middle_block_1_proj_in": "mid_block.attentions.0.proj_in",
    "output_blocks_1_2_conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks_3_1_transformer_blocks_0_ff_net_0_proj": "up_blocks.1.attentions.1.transformer_blocks.0.ff.net.0.proj",
    "output_blocks_5_0_skip_connection": "up_blocks.2.resnets.1.conv_shortcut",
    "out_2": "conv_out",
}
text_names = {
    "lora_te1": [(first, f"text_model.encoder.layers.{i}.{part}") for i, part in enumerate(["self_attn.q_proj", "mlp.fc1", "self_attn.out_proj"])],
    "lora_te2": [(second, f"text_model.encoder.layers.{i}.{part}") for i, part in enumerate(["self_attn.v_proj", "mlp.fc2"])],
}
changed = [(f"lora_unet_{theirs}", layer_of(sdxl.model, ours)) for theirs, ours in names.items()]
for prefix, layers in text_names.items():
    changed += [(f"{prefix}_{name.replace('.', '_')}", text.layer(name)) for text, name in layers]
tensors = {}
for name, layer in changed:
    parts, delta = lora(layer, 2)
    tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    layer.weight.data += delta
write("sdxl", tensors)
outputs["sdxl.output"] = sdxl.run()
outputs["sdxl.text_1"] = first.run().last_hidden_state
outputs["sdxl.text_2"] = second.run().text_embeds
fixture.save(outputs)
