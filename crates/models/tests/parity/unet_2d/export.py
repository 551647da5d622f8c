"""Tiny unconditional and class-conditional UNets: config, random weights, inputs and outputs."""

import json

import fixture
import torch
from diffusers import UNet2DModel

TINY = dict(
    sample_size=8, block_out_channels=[4, 8], norm_num_groups=2, layers_per_block=1, attention_head_dim=4,
    down_block_types=["DownBlock2D", "AttnDownBlock2D"], up_block_types=["AttnUpBlock2D", "UpBlock2D"],
)  # fmt: skip

# name: (config, shape of the class labels)
VARIANTS = {
    # google/ddpm-cifar10-32 and the 256 pixel DDPMs.
    "ddpm": (
        dict(
            attention_head_dim=None, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6, layers_per_block=2,
            block_out_channels=[4, 8, 8], down_block_types=["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
            up_block_types=["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        ),
        None,
    ),
    # CompVis/ldm-celebahq-256.
    "ldm": (
        dict(
            attention_head_dim=4, block_out_channels=[4, 8, 12], layers_per_block=2,
            down_block_types=["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
            up_block_types=["AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        ),
        None,
    ),
    # openai/diffusers-cd_imagenet64_l2.
    "class_table": (
        dict(
            num_class_embeds=5, resnet_time_scale_shift="scale_shift", attn_norm_num_groups=2, block_out_channels=[4, 4, 8],
            down_block_types=["ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
            up_block_types=["AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"], downsample_type="resnet", upsample_type="resnet",
        ),
        (),
    ),
    "class_timestep": (dict(class_embed_type="timestep", act_fn="gelu"), ()),
    "class_identity": (dict(class_embed_type="identity"), (16,)),
    "class_fourier": (dict(class_embed_type="timestep", time_embedding_type="fourier", flip_sin_to_cos=True), ()),
    "fourier": (dict(time_embedding_type="fourier", resnet_time_scale_shift="scale_shift"), None),
    "learned": (dict(time_embedding_type="learned", num_train_timesteps=400), None),
    "one_channel": (dict(in_channels=1, out_channels=2, center_input_sample=True, mid_block_scale_factor=1.5, time_embedding_dim=20), None),
    "no_mid_block": (dict(mid_block_type=None, sample_size=[8, 4]), None),
    "no_attention": (
        dict(add_attention=False, down_block_types=["DownBlock2D", "DownBlock2D"], up_block_types=["UpBlock2D", "UpBlock2D"]),
        None,
    ),
    "uneven_heads": (dict(attention_head_dim=3), None),
}

configs = {}
for name, (changes, labels) in VARIANTS.items():
    generator = torch.Generator().manual_seed(1)
    noise = lambda *shape: torch.randn(shape, generator=generator)
    unet = UNet2DModel(**(TINY | changes)).eval()
    fixture.randomize(unet)
    if unet.config.time_embedding_type == "fourier":
        unet.time_proj.weight.data.copy_(noise(4) * 16)
    height, width = (8, 4) if name == "no_mid_block" else (8, 8)
    sample = noise(2, unet.config.in_channels, height, width)
    timesteps = torch.tensor([81.0, 1.5]) if "fourier" in name else torch.tensor(321)
    kwargs = {}
    if labels == ():
        kwargs["class_labels"] = torch.tensor([3, 1])
    elif labels:
        kwargs["class_labels"] = noise(2, *labels)
    output = unet(sample, timesteps, **kwargs).sample
    tensors = {f"model.{key}": value for key, value in unet.state_dict().items()}
    tensors |= {"sample": sample, "timesteps": timesteps.double().reshape(-1), "output": output} | kwargs
    fixture.save(tensors, name)
    configs[name] = json.loads(unet.to_json_string())

(fixture.folder() / "configs.json").write_text(json.dumps(configs, indent=1, sort_keys=True) + "\n")
