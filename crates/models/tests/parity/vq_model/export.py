"""A tiny autoencoder with a table of latents: what it encodes and decodes."""

import json

import fixture
import torch
from diffusers import VQModel

VARIANTS = {
    "plain": dict(),
    "narrow": dict(vq_embed_dim=2, mid_block_add_attention=False, num_vq_embeddings=40),
}
configs, tensors = {}, {}
for name, changes in VARIANTS.items():
    config = dict(
        block_out_channels=[4, 8], norm_num_groups=2, layers_per_block=1, num_vq_embeddings=30, sample_size=16,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
    )  # fmt: skip
    model = fixture.randomize(VQModel(**(config | changes)).eval())
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(2, 3, 16, 12, generator=generator) * 2 - 1
    latents = model.encode(x).latents
    tensors |= {f"{name}.model.{key}": value for key, value in model.state_dict().items()}
    tensors |= {f"{name}.x": x, f"{name}.latents": latents, f"{name}.decoded": model.decode(latents).sample}
    configs[name] = json.loads(model.to_json_string())

fixture.save(tensors)
(fixture.folder() / "configs.json").write_text(json.dumps(configs, indent=1, sort_keys=True) + "\n")
