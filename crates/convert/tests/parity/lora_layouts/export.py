"""LoRA files in the layouts that the reference libraries write or read, with the changes of weights that those libraries make of them.

Every file is loaded into a tiny pipeline by `load_lora_weights` (or by PEFT), and for each adapted layer `get_delta_weight`, scaled as at a
strength of one, is multiplied by the vector 1, 1/2, 1/3 ...: `deltas.safetensors` has the products by file, component and layer. LyCORIS'
kinds are made by PEFT's LoHa and LoKr.

Where alphas or ranks differ between the layers of a kohya file, the reference takes the commonest alpha for all attention layers (the keys of
its alpha_pattern keep `processor` in them, which no module has): those files have the changes that the definition gives, alpha / rank * up @ down.

Also the names of all layers of the real Stable Diffusion 1.5 and XL as trainers write them, with their names in diffusers.
"""

import gzip
import json
import shutil

import fixture
import peft
import safetensors.torch
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders.lora_base import _pack_dict_with_prefix
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers, _maybe_map_sgm_blocks_to_diffusers
from diffusers.utils import convert_state_dict_to_kohya
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

HERE = fixture.folder()
DELTAS = {}

SD = dict(block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=2, cross_attention_dim=12, attention_head_dim=2,
          down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
XL = dict(block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=2, cross_attention_dim=20, attention_head_dim=(2, 4),
          down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
          use_linear_projection=True, transformer_layers_per_block=(1, 2), addition_embed_type="text_time", addition_time_embed_dim=4,
          projection_class_embeddings_input_dim=8 + 6 * 4)


def clip(model_class, width, **config):
    return model_class(CLIPTextConfig(hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=30,
                                      max_position_embeddings=8, **config))


def sd():
    return StableDiffusionPipeline(vae=None, text_encoder=clip(CLIPTextModel, 12), tokenizer=None, unet=UNet2DConditionModel(**SD),
                                   scheduler=DDIMScheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def sdxl():
    return StableDiffusionXLPipeline(vae=None, text_encoder=clip(CLIPTextModel, 12), tokenizer=None, unet=UNet2DConditionModel(**XL),
                                     text_encoder_2=clip(CLIPTextModelWithProjection, 8, projection_dim=8), tokenizer_2=None,
                                     scheduler=DDIMScheduler())


ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
CONVOLUTIONS = ["conv_in", "conv_out", "conv1", "conv_shortcut", "time_emb_proj", "linear_1", "downsamplers.0.conv", "upsamplers.0.conv", "proj_in", "ff.net.2"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1"]


def adapt(model, seed, **config):
    """Gives the model a LoRA with values that are not zero."""
    config = peft.LoraConfig(init_lora_weights=False, **config)
    model.add_adapter(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + (2.0 if "magnitude" in name else 0.0))
    return peft.get_peft_model_state_dict(model)


def full_name(component, model, name):
    """With the prefix that transformers 5 has lost."""
    if component == "text_encoder" and not hasattr(model, "text_model"):
        return f"text_model.{name}"
    return name


def record(file, models):
    """What the reference has made of `file`."""
    count = 0
    for component, model in models.items():
        for name, module in model.named_modules():
            if not isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer) or not hasattr(module, "get_delta_weight"):
                continue
            (adapter,) = module.active_adapters
            delta = module.get_delta_weight(adapter).detach().double().flatten(1)
            weights = 1.0 / torch.arange(1, delta.shape[1] + 1, dtype=torch.float64)
            DELTAS[f"{file}|{component}|{full_name(component, model, name)}"] = (delta @ weights).float()
            count += 1
    print(f"{file}: {count} layers, {(HERE / file).stat().st_size / 1e3:.0f} kB")


def components(pipeline):
    return {name: model for name in ("unet", "text_encoder", "text_encoder_2") if (model := getattr(pipeline, name, None)) is not None}


def record_defined(file, component, layer, up, down, scaling=1.0):
    """The change by its definition."""
    weights = 1.0 / torch.arange(1, down[0].numel() + 1, dtype=torch.float64)
    DELTAS[f"{file}|{component}|{layer}"] = (scaling * up.double().flatten(1) @ (down.double().flatten(1) @ weights)).float()


def record_loaded(file, new_pipeline):
    pipeline = new_pipeline()
    pipeline.load_lora_weights(str(HERE / file))
    record(file, components(pipeline))


def save(name, tensors, metadata=None):
    safetensors.torch.save_file({key: value.contiguous() for key, value in tensors.items()}, HERE / name, metadata=metadata)


def metadata_of(model):
    config = model.peft_config["default"].to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}


# diffusers, new: ranks and alphas that differ from layer to layer, in the metadata; one file with rsLoRA.
pipeline = sd()
unet = adapt(pipeline.unet, 1, r=2, lora_alpha=3, target_modules=ATTENTION + CONVOLUTIONS, rank_pattern={"conv_in": 3, "attn1.to_q": 1},
             alpha_pattern={"conv_in": 5, r"attn[12]\.to_k": 7})
text = adapt(pipeline.text_encoder, 2, r=2, lora_alpha=2, target_modules=TEXT, alpha_pattern={"encoder.layers.0.self_attn.q_proj": 9})
StableDiffusionPipeline.save_lora_weights(HERE, unet, text, weight_name="diffusers.safetensors", unet_lora_adapter_metadata=metadata_of(pipeline.unet),
                                          text_encoder_lora_adapter_metadata=metadata_of(pipeline.text_encoder))
record_loaded("diffusers.safetensors", sd)

pipeline_xl = sdxl()
unet_xl = adapt(pipeline_xl.unet, 3, r=4, lora_alpha=4, use_rslora=True, target_modules=ATTENTION)
text_xl = adapt(pipeline_xl.text_encoder_2, 4, r=2, lora_alpha=1, target_modules=TEXT)
StableDiffusionXLPipeline.save_lora_weights(HERE, unet_xl, None, text_xl, weight_name="diffusers_xl.safetensors",
                                            unet_lora_adapter_metadata=metadata_of(pipeline_xl.unet),
                                            text_encoder_2_lora_adapter_metadata=metadata_of(pipeline_xl.text_encoder_2))
record_loaded("diffusers_xl.safetensors", sdxl)

# Without metadata, as before diffusers 0.34; then each alpha is the rank.
save("diffusers_plain.safetensors", _pack_dict_with_prefix(unet, "unet") | _pack_dict_with_prefix(text, "text_encoder"), {"format": "pt"})
record_loaded("diffusers_plain.safetensors", sd)

# A model's own file, without the component's name.
pipeline.unet.save_lora_adapter(HERE / "unet_only", adapter_name="default", weight_name="unet_adapter.safetensors")
shutil.move(HERE / "unet_only/unet_adapter.safetensors", HERE / "unet_adapter.safetensors")
(HERE / "unet_only").rmdir()
alone = UNet2DConditionModel(**SD)
alone.load_lora_adapter(str(HERE), weight_name="unet_adapter.safetensors", prefix=None)
record("unet_adapter.safetensors", {"unet": alone})

# DoRA: the magnitudes of linear layers and of convolutions.
dora = UNet2DConditionModel(**SD)
dora_tensors = adapt(dora, 5, r=2, lora_alpha=2, use_dora=True, target_modules=["to_q", "conv1"])
save("diffusers_dora.safetensors", _pack_dict_with_prefix(dora_tensors, "unet"))
record_loaded("diffusers_dora.safetensors", sd)


# PEFT's own folders: LoRA, LoHa and LoKr.
def save_peft(name, config, model=None):
    model = model or UNet2DConditionModel(**SD)
    wrapped = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(6)
    for key, parameter in sorted(wrapped.named_parameters()):
        if any(part in key for part in ("lora_", "hada_", "lokr_")):
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    wrapped.save_pretrained(HERE / name)
    (HERE / name / "README.md").unlink()
    # A set, written in any order.
    path = HERE / name / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"target_modules": sorted(config["target_modules"])}, indent=2) + "\n")
    again = peft.PeftModel.from_pretrained(UNet2DConditionModel(**SD), HERE / name)
    record(f"{name}/adapter_model.safetensors", {"unet": again.base_model.model})


save_peft("peft", peft.LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "to_v", "conv_in", "time_emb_proj"], init_lora_weights=False,
                                  rank_pattern={"conv_in": 4}, alpha_pattern={"conv_in": 1}))
save_peft("peft_loha", peft.LoHaConfig(r=2, alpha=6, target_modules=["to_q", "conv1"], init_weights=False, use_effective_conv2d=True))
save_peft("peft_lokr", peft.LoKrConfig(r=1, alpha=3, target_modules=["to_q", "to_k", "conv1"], init_weights=False, use_effective_conv2d=True,
                                       decompose_both=True, decompose_factor=4))

PREFIXES = {"lora_unet": "unet", "lora_te": "text_encoder", "lora_te1": "text_encoder", "lora_te2": "text_encoder_2"}


def down_up(tensors):
    for key, down in sorted(tensors.items()):
        if key.endswith(".lora_A.weight"):
            layer = key.removesuffix(".lora_A.weight")
            yield layer, down, tensors[f"{layer}.lora_B.weight"]


# kohya by the reference's own conversion, which gives every layer the rank as alpha.
prefixed_text = {f"text_model.{key}": value for key, value in text.items()}
save("kohya_converted.safetensors", convert_state_dict_to_kohya(_pack_dict_with_prefix(unet, "unet") | _pack_dict_with_prefix(prefixed_text, "text_encoder")))
for component, tensors in (("unet", unet), ("text_encoder", prefixed_text)):
    for layer, down, up in down_up(tensors):
        record_defined("kohya_converted.safetensors", component, layer, up, down)


def kohya(prefix, tensors, alphas, rename=lambda name: name, dtype=torch.float32, file=None):
    """As sd-scripts' networks/lora.py names and saves them; `alphas` one after the other."""
    named = {}
    for i, (layer, down, up) in enumerate(down_up(tensors)):
        name = f"{prefix}_{rename(layer).replace('.', '_')}"
        alpha = torch.tensor(alphas[i % len(alphas)], dtype=dtype)
        named |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": alpha}
        if file:
            record_defined(file, PREFIXES[prefix], layer, up, down, alpha.item() / len(down))
    return named


# Alphas of their own, in types of their own.
save("kohya.safetensors", kohya("lora_unet", unet, [0.5, 1.0, 3.0, 8.0], dtype=torch.float16, file="kohya.safetensors")
     | kohya("lora_te", prefixed_text, [2.0, 1.5], dtype=torch.bfloat16, file="kohya.safetensors"),
     {"ss_network_module": "networks.lora", "ss_network_dim": "2", "ss_network_alpha": "3.0", "ss_base_model_version": "sd_v1",
      "ss_output_name": "tiny", "ss_tag_frequency": json.dumps({"10_cat": {"a cat": 10, "tabby": 4}})})
print(f"kohya.safetensors: {(HERE / 'kohya.safetensors').stat().st_size / 1e3:.0f} kB")


def original_names(unet):
    """(original, diffusers) prefixes of modules, counted as UNetModel of generative-models adds them."""
    pairs = [("time_embed.0", "time_embedding.linear_1"), ("time_embed.2", "time_embedding.linear_2"), ("input_blocks.0.0", "conv_in"),
             ("out.2", "conv_out"), ("label_emb.0.0", "add_embedding.linear_1"), ("label_emb.0.2", "add_embedding.linear_2")]
    resnet = [("in_layers.2", "conv1"), ("emb_layers.1", "time_emb_proj"), ("out_layers.3", "conv2"), ("skip_connection", "conv_shortcut")]

    def add(original, diffusers, block, j, attention):
        pairs.extend((f"{original}.0.{a}", f"{diffusers}.resnets.{j}.{b}") for a, b in resnet)
        if attention:
            pairs.append((f"{original}.1", f"{diffusers}.attentions.{j}"))

    count = 1
    for i, block in enumerate(unet.down_blocks):
        for j in range(len(block.resnets)):
            add(f"input_blocks.{count}", f"down_blocks.{i}", block, j, hasattr(block, "attentions"))
            count += 1
        if block.downsamplers is not None:
            pairs.append((f"input_blocks.{count}.0.op", f"down_blocks.{i}.downsamplers.0.conv"))
            count += 1
    for original, j in ((0, 0), (2, 1)):
        pairs.extend((f"middle_block.{original}.{a}", f"mid_block.resnets.{j}.{b}") for a, b in resnet)
    pairs.append(("middle_block.1", "mid_block.attentions.0"))
    count = 0
    for i, block in enumerate(unet.up_blocks):
        for j in range(len(block.resnets)):
            add(f"output_blocks.{count}", f"up_blocks.{i}", block, j, hasattr(block, "attentions"))
            if block.upsamplers is not None and j + 1 == len(block.resnets):
                place = 2 if hasattr(block, "attentions") else 1
                pairs.append((f"output_blocks.{count}.{place}.conv", f"up_blocks.{i}.upsamplers.0.conv"))
            count += 1
    return sorted(pairs, key=lambda pair: -len(pair[1]))


def renamer(unet):
    pairs = original_names(unet)

    def rename(name):
        original, diffusers = next(pair for pair in pairs if (name + ".").startswith(pair[1] + "."))
        return original + name[len(diffusers):]

    return rename


xl = sdxl()
unet_sgm = adapt(xl.unet, 9, r=2, lora_alpha=2, target_modules=ATTENTION + CONVOLUTIONS)
text_sgm = adapt(xl.text_encoder, 10, r=2, lora_alpha=2, target_modules=TEXT)
text_2_sgm = adapt(xl.text_encoder_2, 11, r=2, lora_alpha=2, target_modules=TEXT + ["text_projection"])
save("kohya_original_xl.safetensors", kohya("lora_unet", unet_sgm, [1.0], renamer(xl.unet))
     | kohya("lora_te1", {f"text_model.{key}": value for key, value in text_sgm.items()}, [3.0]) | kohya("lora_te2", text_2_sgm, [0.5]),
     {"ss_base_model_version": "sdxl_base_v1-0"})
record_loaded("kohya_original_xl.safetensors", sdxl)

# diffusers, old: attention processors of the UNet, and both spellings for text encoders.
old, old_text = {}, {}
for key, value in unet.items():
    if any(f".{part}.lora" in key for part in ATTENTION):
        key = key.replace(".to_out.0.", ".to_out.").replace(".lora_A.", "_lora.down.").replace(".lora_B.", "_lora.up.")
        key = key.replace(".attn1.", ".attn1.processor.").replace(".attn2.", ".attn2.processor.")
        old[key] = value
for key, value in prefixed_text.items():
    key = key.replace(".lora_A.", ".lora_linear_layer.down.").replace(".lora_B.", ".lora_linear_layer.up.")
    old_text[key] = value
save("diffusers_old.safetensors", _pack_dict_with_prefix(old, "unet") | _pack_dict_with_prefix(old_text, "text_encoder"))
record_loaded("diffusers_old.safetensors", sd)
oldest_text = {}
for key, value in prefixed_text.items():
    if "self_attn" in key:
        for part in ("q", "k", "v", "out"):
            key = key.replace(f".{part}_proj.lora_A.", f".to_{part}_lora.down.").replace(f".{part}_proj.lora_B.", f".to_{part}_lora.up.")
        oldest_text[key] = value
torch.save(_pack_dict_with_prefix(old, "unet") | _pack_dict_with_prefix(oldest_text, "text_encoder"), HERE / "diffusers_oldest.bin")
record_loaded("diffusers_oldest.bin", sd)
# The first of all: attention processors alone.
torch.save(old, HERE / "attn_procs.bin")
alone = sd()
alone.load_lora_weights(_pack_dict_with_prefix(old, "unet"))
record("attn_procs.bin", {"unet": alone.unet})

# cloneofsimo: the order of its _find_modules in a diffusers from before 0.15, whose transformer block had attn1, ff, attn2.
def modules(model, ancestors):
    for name, module in model.named_modules():
        if module.__class__.__name__ in ancestors:
            yield from (f"{name}.{inner}".rstrip(".") for inner, child in module.named_modules() if isinstance(child, torch.nn.Linear))


def old_order(names):
    """Moves the feed-forward between the attentions."""
    def key(place_and_name):
        place, name = place_and_name
        block, _, part = name.partition(".transformer_blocks.")
        layer, _, part = part.partition(".")
        first = next(i for i, other in enumerate(names) if other.startswith(f"{block}.transformer_blocks.{layer}."))
        return first, ["attn1", "ff", "attn2"].index(part.split(".")[0]), place
    return [name for _, name in sorted(enumerate(names), key=key)]


fresh = sd()
order = old_order(list(modules(fresh.unet, {"Attention", "GEGLU"})))
generator = torch.Generator().manual_seed(15)
pairs, flat = [], []
for name in order:
    weight = fresh.unet.get_submodule(name).weight
    up, down = (torch.randn(shape, generator=generator) * 0.3 for shape in ((weight.shape[0], 2), (2, weight.shape[1])))
    flat += [up, down]
    pairs.append((name, up, down))
torch.save(flat, HERE / "cloneofsimo.pt")
numbered = {}
numbered_metadata = {"unet": json.dumps(["CrossAttention", "Attention", "GEGLU"]), "text_encoder": json.dumps(["CLIPAttention"]), "<s1>": "<embed>"}
for i, (name, up, down) in enumerate(pairs):
    numbered |= {f"unet:{i}:up": up, f"unet:{i}:down": down}
    numbered_metadata[f"unet:{i}:rank"] = "2"
    for file in ("cloneofsimo.pt", "cloneofsimo.safetensors"):
        record_defined(file, "unet", name, up, down)
for i, name in enumerate(modules(fresh.text_encoder, {"CLIPAttention"})):
    up, down = (torch.randn(shape, generator=generator) * 0.3 for shape in ((12, 1), (1, 12)))
    numbered |= {f"text_encoder:{i}:up": up, f"text_encoder:{i}:down": down}
    numbered_metadata[f"text_encoder:{i}:rank"] = "1"
    record_defined("cloneofsimo.safetensors", "text_encoder", f"text_model.{name}", up, down)
save("cloneofsimo.safetensors", numbered | {"<s1>": torch.ones(12)}, numbered_metadata)

fixture.save(DELTAS, "deltas")


# All layers of the real models.
def write_names(file, lines):
    (HERE / file).write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode(), 9, mtime=0))
    print(f"{file}: {len(lines)} names, {(HERE / file).stat().st_size / 1e3:.0f} kB")


def layers(model):
    return [name for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))]


def real(unet_config, *texts):
    with torch.device("meta"):
        return UNet2DConditionModel(**unet_config), [model_class(CLIPTextConfig(**config)) for model_class, config in texts]


def named(prefix, component, model, rename=lambda name: name):
    lines = []
    for name in layers(model):
        name = full_name(component, model, name)
        lines.append(f"{prefix}_{rename(name).replace('.', '_')} {component} {name}")
    return lines


def check_with_reference(lines, unet):
    """Fails unless the reference's converters give the same names, for those that it converts."""
    state = {}
    for line in lines:
        kohya_name, component, _ = line.split(" ")
        for part in ("lora_down.weight", "lora_up.weight"):
            state[f"{kohya_name}.{part}"] = torch.zeros(1, 1)
    converted, _ = _convert_non_diffusers_lora_to_diffusers(_maybe_map_sgm_blocks_to_diffusers(state, unet.config))
    converted = {key.replace(".processor.", ".").replace("to_out_lora", "to_out.0_lora") for key in converted if key.endswith("down.weight")}
    found = {key.replace("_lora.down.weight", "").replace(".lora.down.weight", "").replace(".lora_linear_layer.down.weight", "") for key in converted}
    for part in ("q", "k", "v", "out"):
        found = {key.replace(f"self_attn.to_{part}", f"self_attn.{part}_proj").replace("out_proj.0", "out_proj") for key in found}
    expected = {f"{component}.{name}" for _, component, name in (line.split(" ") for line in lines)}
    wrong = found ^ expected
    # It knows these by their original names only.
    assert all("add.embedding" in name or "add_embedding" in name for name in wrong), sorted(wrong)[:10]


CLIP_L = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768)
CLIP_G = dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280)
unet, (clip_l,) = real(dict(cross_attention_dim=768), (CLIPTextModel, CLIP_L))
lines = named("lora_unet", "unet", unet) + named("lora_te", "text_encoder", clip_l)
check_with_reference(lines, unet)
write_names("names_sd15.txt.gz", lines)
write_names("names_sd15_original.txt.gz", named("lora_unet", "unet", unet, renamer(unet)))
SDXL = dict(block_out_channels=(320, 640, 1280), cross_attention_dim=2048, attention_head_dim=(5, 10, 20), transformer_layers_per_block=(1, 2, 10),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816)
unet, texts = real(SDXL, (CLIPTextModel, CLIP_L), (CLIPTextModelWithProjection, CLIP_G))
encoders = named("lora_te1", "text_encoder", texts[0]) + named("lora_te2", "text_encoder_2", texts[1])
lines = named("lora_unet", "unet", unet, renamer(unet)) + encoders
check_with_reference(lines, unet)
write_names("names_sdxl_original.txt.gz", lines)
lines = named("lora_unet", "unet", unet) + encoders
check_with_reference(lines, unet)
write_names("names_sdxl.txt.gz", lines)
