"""The names that tensors have in the original layout, for models of diffusers and transformers of any size.

Counted as the modules of latent-diffusion, generative-models and open_clip add them. That they are right is what the reference's
converters prove where scripts use them: from these names they make exactly the tensors of the model.
"""

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextModel

RESNET = [("in_layers.0", "norm1"), ("in_layers.2", "conv1"), ("emb_layers.1", "time_emb_proj"), ("out_layers.0", "norm2"),
          ("out_layers.3", "conv2"), ("skip_connection", "conv_shortcut")]


def unet_modules(unet):
    """(original, diffusers) names of modules, counted as UNetModel of openaimodel.py adds them."""
    pairs = [("time_embed.0", "time_embedding.linear_1"), ("time_embed.2", "time_embedding.linear_2"),
             ("label_emb.0.0", "add_embedding.linear_1"), ("label_emb.0.2", "add_embedding.linear_2"),
             ("input_blocks.0.0", "conv_in"), ("out.0", "conv_norm_out"), ("out.2", "conv_out")]

    def resnet(original, diffusers):
        pairs.extend((f"{original}.{a}", f"{diffusers}.{b}") for a, b in RESNET)

    count = 1
    for i, block in enumerate(unet.down_blocks):
        for j in range(len(block.resnets)):
            resnet(f"input_blocks.{count}.0", f"down_blocks.{i}.resnets.{j}")
            if hasattr(block, "attentions"):
                pairs.append((f"input_blocks.{count}.1", f"down_blocks.{i}.attentions.{j}"))
            count += 1
        if block.downsamplers is not None:
            pairs.append((f"input_blocks.{count}.0.op", f"down_blocks.{i}.downsamplers.0.conv"))
            count += 1
    resnet("middle_block.0", "mid_block.resnets.0")
    pairs.append(("middle_block.1", "mid_block.attentions.0"))
    resnet("middle_block.2", "mid_block.resnets.1")
    count = 0
    for i, block in enumerate(getattr(unet, "up_blocks", [])):
        for j in range(len(block.resnets)):
            resnet(f"output_blocks.{count}.0", f"up_blocks.{i}.resnets.{j}")
            place = 1
            if hasattr(block, "attentions"):
                pairs.append((f"output_blocks.{count}.1", f"up_blocks.{i}.attentions.{j}"))
                place = 2
            if block.upsamplers is not None and j + 1 == len(block.resnets):
                pairs.append((f"output_blocks.{count}.{place}.conv", f"up_blocks.{i}.upsamplers.0.conv"))
            count += 1
    return pairs


def controlnet_modules(net):
    pairs = unet_modules(net)
    pairs.append(("middle_block_out.0", "controlnet_mid_block"))
    pairs.extend((f"zero_convs.{i}.0", f"controlnet_down_blocks.{i}") for i in range(len(net.controlnet_down_blocks)))
    embedding = net.controlnet_cond_embedding
    pairs.append(("input_hint_block.0", "controlnet_cond_embedding.conv_in"))
    pairs.extend((f"input_hint_block.{2 * i + 2}", f"controlnet_cond_embedding.blocks.{i}") for i in range(len(embedding.blocks)))
    pairs.append((f"input_hint_block.{2 * len(embedding.blocks) + 2}", "controlnet_cond_embedding.conv_out"))
    return pairs


def vae_modules(vae):
    """As Encoder and Decoder of latent-diffusion's model.py name them."""
    resnet = [("norm1", "norm1"), ("conv1", "conv1"), ("norm2", "norm2"), ("conv2", "conv2"), ("nin_shortcut", "conv_shortcut")]
    pairs = [("quant_conv", "quant_conv"), ("post_quant_conv", "post_quant_conv")]
    blocks = len(vae.config.block_out_channels)
    places = []
    for side in ("encoder", "decoder"):
        pairs += [(f"{side}.conv_in", f"{side}.conv_in"), (f"{side}.norm_out", f"{side}.conv_norm_out"), (f"{side}.conv_out", f"{side}.conv_out")]
        places += [(f"{side}.mid.block_{j + 1}", f"{side}.mid_block.resnets.{j}") for j in range(2)]
        attention = [("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")]
        pairs += [(f"{side}.mid.attn_1.{a}", f"{side}.mid_block.attentions.0.{b}") for a, b in attention]
    for i in range(blocks):
        places += [(f"encoder.down.{i}.block.{j}", f"encoder.down_blocks.{i}.resnets.{j}") for j in range(vae.config.layers_per_block)]
        places += [(f"decoder.up.{blocks - 1 - i}.block.{j}", f"decoder.up_blocks.{i}.resnets.{j}") for j in range(vae.config.layers_per_block + 1)]
        pairs += [(f"encoder.down.{i}.downsample.conv", f"encoder.down_blocks.{i}.downsamplers.0.conv"),
                  (f"decoder.up.{blocks - 1 - i}.upsample.conv", f"decoder.up_blocks.{i}.upsamplers.0.conv")]
    return pairs + [(f"{a}.{x}", f"{b}.{y}") for a, b in places for x, y in resnet]


def original_tensors(model, modules):
    """The model's tensors by their original names, in their original shapes."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        original, diffusers = next(pair for pair in modules if name.startswith(pair[1] + "."))
        if ".mid_block.attentions.0." in f".{name}" and isinstance(model, AutoencoderKL) and tensor.dim() == 2:
            tensor = tensor[:, :, None, None]
        tensors[original + name[len(diffusers):]] = tensor
    assert len(tensors) == len(model.state_dict())
    return tensors


def renamed(model, modules):
    """Original names and shapes of the model's tensors."""
    return {name: list(tensor.shape) for name, tensor in original_tensors(model, modules).items()}


def clip_names(config):
    model = CLIPTextModel(config)
    names = {f"text_model.{name.removeprefix('text_model.')}": list(t.shape) for name, t in model.state_dict().items()}
    names["text_model.embeddings.position_ids"] = None
    return names


def open_clip_names(config, layers):
    width, inner = config.hidden_size, config.intermediate_size
    names = {"token_embedding.weight": [config.vocab_size, width], "positional_embedding": [77, width], "logit_scale": [],
             "ln_final.weight": [width], "ln_final.bias": [width], "text_projection": [width, config.projection_dim]}
    for i in range(layers):
        at = f"transformer.resblocks.{i}"
        for norm in ("ln_1", "ln_2"):
            names |= {f"{at}.{norm}.weight": [width], f"{at}.{norm}.bias": [width]}
        names |= {f"{at}.attn.in_proj_weight": [3 * width, width], f"{at}.attn.in_proj_bias": [3 * width],
                  f"{at}.attn.out_proj.weight": [width, width], f"{at}.attn.out_proj.bias": [width],
                  f"{at}.mlp.c_fc.weight": [inner, width], f"{at}.mlp.c_fc.bias": [inner],
                  f"{at}.mlp.c_proj.weight": [width, inner], f"{at}.mlp.c_proj.bias": [width]}
    return names


def open_clip_tensors(model):
    """The tensors of a text encoder of transformers by OpenCLIP's names: q, k and v in one, the projection the other way round."""
    state = {name.removeprefix("text_model."): tensor for name, tensor in model.state_dict().items()}
    tensors = {"token_embedding.weight": state["embeddings.token_embedding.weight"],
               "positional_embedding": state["embeddings.position_embedding.weight"],
               "ln_final.weight": state["final_layer_norm.weight"], "ln_final.bias": state["final_layer_norm.bias"]}
    if "text_projection.weight" in state:
        tensors["text_projection"] = state["text_projection.weight"].T
    for i in range(model.config.num_hidden_layers):
        layer, at = f"encoder.layers.{i}", f"transformer.resblocks.{i}"
        for part in ("weight", "bias"):
            fused = [state[f"{layer}.self_attn.{which}_proj.{part}"] for which in "qkv"]
            tensors[f"{at}.attn.in_proj_{part}"] = torch.cat(fused)
            for theirs, ours in [("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"),
                                 ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2")]:
                tensors[f"{at}.{theirs}.{part}"] = state[f"{layer}.{ours}.{part}"]
    return tensors
