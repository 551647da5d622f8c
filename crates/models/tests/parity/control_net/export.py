"""Tiny ControlNets of both families: config, random weights, inputs and residuals."""

import json

import fixture
import torch
from diffusers import ControlNetModel

TINY = dict(
    block_out_channels=[8, 16],
    norm_num_groups=4,
    layers_per_block=1,
    cross_attention_dim=12,
    attention_head_dim=2,
    down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
)
CONTROL = dict(conditioning_embedding_out_channels=[4, 6, 8])
SDXL = dict(
    block_out_channels=[8, 8, 16],
    down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    transformer_layers_per_block=[1, 1, 2],
    attention_head_dim=[1, 2, 4],
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=4,
    projection_class_embeddings_input_dim=6 * 4 + 10,
)

# name: (config, keyword arguments of forward)
VARIANTS = {
    "sd1": (dict(), dict()),
    "guess": (dict(layers_per_block=2, transformer_layers_per_block=[0, 1]), dict(conditioning_scale=1.5, guess_mode=True)),
    "sdxl": (SDXL, dict(conditioning_scale=0.5)),
    "pooled": (dict(global_pool_conditions=True, transformer_layers_per_block=0), dict(conditioning_scale=0.7, guess_mode=True)),
    "oddities": (
        dict(
            conditioning_channels=2,
            controlnet_conditioning_channel_order="bgr",
            conditioning_embedding_out_channels=[5],
            mid_block_type="UNetMidBlock2D",
            flip_sin_to_cos=False,
            freq_shift=1,
            act_fn="gelu",
            class_embed_type="projection",
            projection_class_embeddings_input_dim=7,
        ),
        dict(),
    ),
}

configs = {}
for name, (changes, kwargs) in VARIANTS.items():
    generator = torch.Generator().manual_seed(1)
    noise = lambda *shape: torch.randn(shape, generator=generator)
    net = fixture.randomize(ControlNetModel(**(TINY | CONTROL | changes))).eval()
    factor = 2 ** (len(net.config.conditioning_embedding_out_channels) - 1)
    sample, text, timesteps = noise(2, 4, 8, 8), noise(2, 5, 12), torch.tensor([321.0, 12.0])
    picture = torch.rand(2, net.config.conditioning_channels, 8 * factor, 8 * factor, generator=generator)
    tensors = {f"model.{key}": value for key, value in net.state_dict().items()}
    tensors |= {"sample": sample, "timesteps": timesteps.double(), "text": text, "picture": picture}
    if name == "sdxl":
        text_embeds, time_ids = noise(2, 10), torch.randint(0, 1024, (2, 6), generator=generator).float()
        kwargs["added_cond_kwargs"] = {"text_embeds": text_embeds, "time_ids": time_ids}
        tensors |= {"text_embeds": text_embeds, "time_ids": time_ids}
    if name == "oddities":
        tensors["class_labels"] = kwargs["class_labels"] = noise(2, 7)
    output = net(sample, timesteps, text, picture, **kwargs)
    tensors |= {f"down.{i}": residual for i, residual in enumerate(output.down_block_res_samples)}
    tensors["mid"] = output.mid_block_res_sample
    fixture.save(tensors, name)
    configs[name] = json.loads(net.to_json_string())

(fixture.folder() / "configs.json").write_text(json.dumps(configs, indent=1, sort_keys=True) + "\n")
