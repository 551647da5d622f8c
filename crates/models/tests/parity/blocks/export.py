"""The blocks that UNets and autoencoders are made of, one by one."""

import fixture
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.vae import Decoder, DiagonalGaussianDistribution, Encoder
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import DownEncoderBlock2D, UNetMidBlock2D, UpDecoderBlock2D
from diffusers.models.upsampling import Upsample2D

generator = torch.Generator().manual_seed(11)
tensors = {}


def draw(*shape):
    return torch.randn(shape, generator=generator)


def export(name, block, x, *inputs, **named):
    """The block's weights, its input and its output."""
    fixture.randomize(block.eval(), seed=len(tensors))
    # Downsample2D has its convolution under a second, deprecated name, which no file has.
    weights = {key: value for key, value in block.state_dict().items() if "Conv2d_0" not in key}
    tensors.update({f"{name}.model.{key}": value for key, value in weights.items()})
    tensors[f"{name}.x"] = x
    tensors[f"{name}.output"] = block(x, *inputs, **named)


x = draw(2, 8, 5, 6)
temb = draw(2, 10)
tensors["temb"] = temb

plain = dict(in_channels=8, groups=4, eps=1e-6)
timed = dict(in_channels=8, groups=4, eps=1e-5, temb_channels=10)
export("resnet", ResnetBlock2D(**plain, temb_channels=None), x, None)
export("resnet_shortcut", ResnetBlock2D(**plain, out_channels=4, temb_channels=None), x, None)
export("resnet_gelu", ResnetBlock2D(**timed, out_channels=4, non_linearity="gelu"), x, temb)
export("resnet_time", ResnetBlock2D(**timed, out_channels=12), x, temb)
scale_shift = ResnetBlock2D(
    **timed, out_channels=12, time_embedding_norm="scale_shift", skip_time_act=True, output_scale_factor=1.7
)
export("resnet_scale_shift", scale_shift, x, temb)
export("resnet_skip_time_act", ResnetBlock2D(**timed, skip_time_act=True, output_scale_factor=0.5), x, temb)

export("downsample_padding_1", Downsample2D(8, use_conv=True, padding=1, name="op"), x)
export("downsample_padding_0", Downsample2D(8, use_conv=True, padding=0, name="op"), x)
export("upsample", Upsample2D(8, use_conv=True), x)
export("upsample_to_9x11", Upsample2D(8, use_conv=True), x, (9, 11))

attention = Attention(
    8, heads=1, dim_head=8, eps=1e-6, norm_num_groups=4, residual_connection=True, bias=True, upcast_softmax=True
)
export("attention", attention, x)
block = dict(resnet_eps=1e-6, resnet_act_fn="silu", resnet_groups=4)
export("mid", UNetMidBlock2D(8, temb_channels=None, attention_head_dim=8, **block), x)
mid_without_attention = UNetMidBlock2D(8, temb_channels=None, attention_head_dim=8, add_attention=False, **block)
export("mid_without_attention", mid_without_attention, x)
export("down", DownEncoderBlock2D(8, 4, num_layers=2, downsample_padding=0, **block), x)
export("down_last", DownEncoderBlock2D(8, 8, num_layers=2, add_downsample=False, **block), x)
export("up", UpDecoderBlock2D(8, 4, num_layers=2, **block), x)
export("up_last", UpDecoderBlock2D(8, 8, num_layers=2, add_upsample=False, **block), x)

coder = dict(block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=4)
down_block_types = ("DownEncoderBlock2D",) * 2
encoder = Encoder(in_channels=8, out_channels=4, down_block_types=down_block_types, double_z=True, **coder)
export("encoder", encoder, x)
export("decoder", Decoder(in_channels=8, out_channels=3, up_block_types=("UpDecoderBlock2D",) * 2, **coder), x)

# Logarithms of variances on both sides of what they are clamped to.
parameters = draw(2, 6, 3, 4) * torch.tensor([1.0, 1.0, 1.0, 30.0, 30.0, 30.0]).view(1, 6, 1, 1)
distribution = DiagonalGaussianDistribution(parameters)
tensors["distribution.parameters"] = parameters
for key in ["mean", "logvar", "std", "var"]:
    tensors[f"distribution.{key}"] = getattr(distribution, key)
tensors["distribution.kl"] = distribution.kl()

fixture.save(tensors)
