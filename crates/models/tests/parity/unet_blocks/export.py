"""Each block of a UNet alone."""

import fixture
import torch
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets import unet_2d_blocks as blocks

generator = torch.Generator().manual_seed(3)
noise = lambda *shape: torch.randn(shape, generator=generator)
tensors = {}


def keep(name, model, output, **inputs):
    tensors.update({f"{name}.model.{key}": value for key, value in model.state_dict().items()})
    tensors.update({f"{name}.{key}": value for key, value in inputs.items()})
    tensors[f"{name}.output"] = output


x, temb, text = noise(2, 8, 6, 4), noise(2, 10), noise(2, 5, 12)
tokens = noise(2, 7, 8)
tensors |= {"x": x, "temb": temb, "text": text, "tokens": tokens}

for name, shift, flip, channels in [("plain", 0, True, 8), ("shifted", 1, False, 7)]:
    timesteps = torch.tensor([0.0, 1.0, 17.25, 999.0])
    tensors[f"timesteps_{name}.output"] = Timesteps(channels, flip, shift)(timesteps)
tensors["timesteps"] = timesteps

embedding = fixture.randomize(TimestepEmbedding(10, 12, post_act_fn="silu", cond_proj_dim=5))
condition = noise(2, 5)
keep("timestep_embedding", embedding, embedding(temb, condition), condition=condition)

feed_forward = fixture.randomize(FeedForward(8, activation_fn="geglu"))
keep("feed_forward", feed_forward, feed_forward(tokens))

for name, only_cross in [("transformer_block", False), ("transformer_block_only_cross", True)]:
    block = fixture.randomize(BasicTransformerBlock(8, 2, 4, cross_attention_dim=12, activation_fn="geglu", only_cross_attention=only_cross))
    keep(name, block, block(tokens, encoder_hidden_states=text))

for name, linear in [("transformer_conv", False), ("transformer_linear", True)]:
    model = fixture.randomize(
        Transformer2DModel(2, 4, in_channels=8, num_layers=2, cross_attention_dim=12, norm_num_groups=4, use_linear_projection=linear)
    )
    keep(name, model, model(x, encoder_hidden_states=text).sample)

shared = dict(temb_channels=10, resnet_groups=4, resnet_eps=1e-5)
cross = dict(cross_attention_dim=12, num_attention_heads=2)

for name, block in {
    "down_cross": blocks.CrossAttnDownBlock2D(in_channels=8, out_channels=12, num_layers=2, **shared, **cross),
    "down_plain": blocks.DownBlock2D(in_channels=8, out_channels=12, num_layers=2, **shared),
    "down_last": blocks.DownBlock2D(in_channels=8, out_channels=12, num_layers=1, add_downsample=False, **shared),
}.items():
    fixture.randomize(block)
    given = {"encoder_hidden_states": text} if "cross" in name else {}
    output, residuals = block(x, temb, **given)
    keep(name, block, output, **{f"residual.{i}": residual for i, residual in enumerate(residuals)})

mid = fixture.randomize(blocks.UNetMidBlock2DCrossAttn(in_channels=8, output_scale_factor=1.25, **shared, **cross))
keep("mid_cross", mid, mid(x, temb, encoder_hidden_states=text))
mid = fixture.randomize(blocks.UNetMidBlock2D(in_channels=8, num_layers=0, add_attention=False, **shared))
keep("mid_plain", mid, mid(x, temb))

skips = [noise(2, 4, 6, 4), noise(2, 12, 6, 4)]
tensors |= {f"skip.{i}": skip for i, skip in enumerate(skips)}
for name, block in {
    "up_cross": blocks.CrossAttnUpBlock2D(in_channels=4, prev_output_channel=8, out_channels=12, num_layers=2, **shared, **cross),
    "up_plain": blocks.UpBlock2D(in_channels=4, prev_output_channel=8, out_channels=12, num_layers=2, **shared),
    "up_last": blocks.UpBlock2D(in_channels=4, prev_output_channel=8, out_channels=12, num_layers=2, add_upsample=False, **shared),
}.items():
    fixture.randomize(block)
    given = {"encoder_hidden_states": text} if "cross" in name else {}
    keep(name, block, block(x, tuple(skips), temb, **given))

fixture.save(tensors)
