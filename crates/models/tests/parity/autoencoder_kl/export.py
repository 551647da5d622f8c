"""Tiny autoencoders: encode to a distribution, draw from it, decode; in one piece, in tiles, and of odd sizes."""

import fixture
import torch
from diffusers import AutoencoderKL

VARIANTS = {
    # Three widths, an odd number of layers, both quant convs; tiles of 16 pixels and 4 latents.
    "full": dict(block_out_channels=(4, 8, 8), layers_per_block=1, norm_num_groups=4, sample_size=16),
    # Neither quant conv nor attention; other channels in than out, and another activation.
    "plain": dict(
        block_out_channels=(4, 6), layers_per_block=2, norm_num_groups=2, sample_size=8, act_fn="gelu",
        latent_channels=3, in_channels=4, out_channels=2, use_quant_conv=False, use_post_quant_conv=False,
        mid_block_add_attention=False,
    ),
    # One block, which halves nothing; one quant conv.
    "single": dict(
        block_out_channels=(4,), layers_per_block=1, norm_num_groups=4, sample_size=8, act_fn="swish",
        use_post_quant_conv=False,
    ),
}  # fmt: skip

tensors = {}


def export(name, options):
    blocks = len(options["block_out_channels"])
    factor = 2 ** (blocks - 1)
    model = AutoencoderKL(
        **options, down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks
    )
    fixture.randomize(model.eval(), seed=blocks)
    tensors.update({f"{name}.model.{key}": value for key, value in model.state_dict().items()})
    generator = torch.Generator().manual_seed(3)

    def draw(channels, height, width):
        return torch.randn(2, channels, height, width, generator=generator)

    def encode(key, sample):
        posterior = model.encode(sample).latent_dist
        tensors[f"{name}.{key}.sample"] = sample
        tensors[f"{name}.{key}.moments"] = torch.cat([posterior.mean, posterior.logvar], dim=1)
        return posterior

    def decode(key, latents):
        tensors[f"{name}.{key}.latents"] = latents
        tensors[f"{name}.{key}.decoded"] = model.decode(latents).sample

    posterior = encode("encode", draw(model.config.in_channels, 4 * factor, 3 * factor))
    tensors[f"{name}.encode.noise"] = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(7))
    tensors[f"{name}.encode.drawn"] = posterior.sample(torch.Generator().manual_seed(7))
    tensors[f"{name}.encode.kl"] = posterior.kl()
    encode("encode_odd", draw(model.config.in_channels, 4 * factor - 1, 3 * factor - 1))
    decode("decode", draw(model.config.latent_channels, 4, 3))
    if name == "single":
        return
    model.enable_tiling()
    decode("tiled_decode", draw(model.config.latent_channels, 6, 5))
    # The last tiles are smaller than the overlap.
    encode("tiled_encode", draw(model.config.in_channels, 7 * factor, 6 * factor))
    # A tile that is not a multiple of the factor, and another overlap.
    model.tile_sample_min_size, model.tile_latent_min_size, model.tile_overlap_factor = 14, 3, 0.4
    decode("tiled_decode_uneven", draw(model.config.latent_channels, 4, 3))
    encode("tiled_encode_uneven", draw(model.config.in_channels, 22, 15))


for name, options in VARIANTS.items():
    export(name, options)
fixture.save(tensors)
