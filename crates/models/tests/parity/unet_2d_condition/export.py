"""Tiny UNets of every family: config, random weights, inputs and outputs."""

import json

import fixture
import torch
from diffusers import UNet2DConditionModel

TINY = dict(
    sample_size=8,
    block_out_channels=[8, 16],
    norm_num_groups=4,
    layers_per_block=1,
    cross_attention_dim=12,
    attention_head_dim=2,
    down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
    up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
)
SDXL = dict(addition_embed_type="text_time", addition_time_embed_dim=4, use_linear_projection=True)

# name: (config, names of the conditions that forward is given)
VARIANTS = {
    "sd1": (dict(), []),
    "sd2": (dict(use_linear_projection=True, attention_head_dim=[1, 4], upcast_attention=True, layers_per_block=2), []),
    "sdxl": (
        SDXL
        | dict(
            block_out_channels=[8, 8, 16],
            down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            transformer_layers_per_block=[1, 1, 2],
            attention_head_dim=[1, 2, 4],
            projection_class_embeddings_input_dim=6 * 4 + 10,
        ),
        ["text_time_6"],
    ),
    "sdxl_refiner": (
        SDXL
        | dict(
            block_out_channels=[8, 8, 8, 8],
            down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            up_block_types=["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            transformer_layers_per_block=2,
            attention_head_dim=[1, 2, 2, 4],
            projection_class_embeddings_input_dim=5 * 4 + 10,
        ),
        ["text_time_5"],
    ),
    "inpainting": (dict(in_channels=9), []),
    "instruct_pix2pix": (dict(in_channels=8), []),
    "time_cond": (dict(time_cond_proj_dim=6, timestep_post_act="silu", time_embedding_act_fn="gelu"), ["timestep_cond"]),
    "class_table": (dict(num_class_embeds=5), ["class_indices"]),
    "class_timestep": (dict(class_embed_type="timestep", class_embeddings_concat=True), ["class_indices"]),
    "class_identity": (dict(class_embed_type="identity"), ["class_vectors_32"]),
    "class_projection": (
        dict(class_embed_type="projection", projection_class_embeddings_input_dim=7),
        ["class_vectors_7"],
    ),
    "class_simple_projection": (
        dict(class_embed_type="simple_projection", projection_class_embeddings_input_dim=7),
        ["class_vectors_7"],
    ),
    "scale_shift": (dict(resnet_time_scale_shift="scale_shift", mid_block_scale_factor=1.5, norm_eps=1e-4), []),
    "only_cross_attention": (dict(only_cross_attention=[True, False]), []),
    "oddities": (
        dict(
            center_input_sample=True,
            flip_sin_to_cos=False,
            freq_shift=1,
            time_embedding_dim=20,
            conv_in_kernel=5,
            conv_out_kernel=1,
            downsample_padding=0,
            act_fn="gelu",
            out_channels=3,
        ),
        [],
    ),
    "no_mid_block": (dict(mid_block_type=None), []),
    "plain_mid_block": (dict(mid_block_type="UNetMidBlock2D"), []),
    "odd_size": (dict(layers_per_block=[1, 2]), []),
    "control": (dict(), ["control"]),
    "masked_text": (dict(), ["encoder_attention_mask"]),
}


def conditions(names, unet, sample, noise):
    """The keyword arguments of forward, and the tensors that the fixture keeps for them."""
    kwargs, kept = {}, {}
    for name in names:
        if name.startswith("text_time"):
            text, ids = noise(2, 10), torch.randint(0, 1024, (2, int(name[-1]))).float()
            kwargs["added_cond_kwargs"] = {"text_embeds": text, "time_ids": ids}
            kept |= {"text_embeds": text, "time_ids": ids}
        elif name == "timestep_cond":
            kept[name] = kwargs[name] = noise(2, 6)
        elif name == "class_indices":
            kept["class_labels"] = kwargs["class_labels"] = torch.tensor([3, 1])
        elif name.startswith("class_vectors"):
            kept["class_labels"] = kwargs["class_labels"] = noise(2, int(name.split("_")[-1]))
        elif name == "encoder_attention_mask":
            kept[name] = kwargs[name] = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 1, 1, 1]])
        elif name == "control":
            down = [noise(2, 8, 8, 8), noise(2, 8, 8, 8), noise(2, 8, 4, 4), noise(2, 16, 4, 4)]
            mid = noise(2, 16, 4, 4)
            kwargs |= {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": mid}
            kept |= {f"control.{i}": tensor for i, tensor in enumerate(down)} | {"control.mid": mid}
    return kwargs, kept


configs = {}
for name, (changes, given) in VARIANTS.items():
    generator = torch.Generator().manual_seed(1)
    noise = lambda *shape: torch.randn(shape, generator=generator)
    unet = fixture.randomize(UNet2DConditionModel(**(TINY | changes))).eval()
    height, width = (7, 5) if name == "odd_size" else (8, 8)
    sample = noise(2, unet.config.in_channels, height, width)
    text = noise(2, 5, 12)
    timesteps = torch.tensor([981.0, 1.5]) if name == "oddities" else torch.tensor(321)
    kwargs, kept = conditions(given, unet, sample, noise)
    output = unet(sample, timesteps, text, **kwargs).sample
    tensors = {f"model.{key}": value for key, value in unet.state_dict().items()}
    tensors |= {"sample": sample, "timesteps": timesteps.double().reshape(-1), "text": text, "output": output} | kept
    fixture.save(tensors, name)
    configs[name] = json.loads(unet.to_json_string())

(fixture.folder() / "configs.json").write_text(json.dumps(configs, indent=1, sort_keys=True) + "\n")
