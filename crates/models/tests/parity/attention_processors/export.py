"""A tiny UNet with some of its attentions computed by another processor: what that sees, and what comes of it."""

import json

import fixture
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import Attention

TOKEN, FACTOR = 2, 3.0


class Scaling:
    """Keeps the probabilities and then multiplies those of one token."""

    def __init__(self):
        self.probabilities = None

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        batch, tokens, _ = context.shape
        attention_mask = attn.prepare_attention_mask(attention_mask, tokens, batch)
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(context))
        value = attn.head_to_batch_dim(attn.to_v(context))
        probabilities = attn.get_attention_scores(query, key, attention_mask)
        self.probabilities = probabilities.reshape(batch, attn.heads, *probabilities.shape[1:]).clone()
        probabilities[..., TOKEN] *= FACTOR
        hidden_states = attn.batch_to_head_dim(torch.bmm(probabilities, value))
        return attn.to_out[0](hidden_states)


unet = fixture.randomize(
    UNet2DConditionModel(
        sample_size=4, block_out_channels=[4, 4], norm_num_groups=2, layers_per_block=1, cross_attention_dim=6, attention_head_dim=2,
        down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"], up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
    )  # fmt: skip
).eval()
generator = torch.Generator().manual_seed(1)
sample, text = torch.randn(2, 4, 4, 4, generator=generator), torch.randn(2, 5, 6, generator=generator)
mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 1, 1, 1]])
tensors = {f"model.{key}": value for key, value in unet.state_dict().items()}
tensors |= {"sample": sample, "text": text, "mask": mask}
plain = dict(unet.attn_processors)
names = sorted(name.removesuffix(".processor") for name in plain)

for case, ending, kwargs in [("cross", "attn2", {}), ("masked", "attn2", {"encoder_attention_mask": mask}), ("self", "attn1", {})]:
    chosen = {name: Scaling() for name in plain if name.endswith(f"{ending}.processor")}
    unet.set_attn_processor(plain | chosen)
    tensors[f"{case}.output"] = unet(sample, 321, text, **kwargs).sample
    for name, processor in chosen.items():
        tensors[f"{case}.{name.removesuffix('.processor')}"] = processor.probabilities
# One layer alone.
one = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor"
unet.set_attn_processor(plain | {one: Scaling()})
tensors["one.output"] = unet(sample, 321, text).sample
unet.set_attn_processor(plain)
tensors["plain.output"] = unet(sample, 321, text).sample
fixture.save(tensors)

blocks = dict(block_out_channels=[4, 4], norm_num_groups=2)
vae = AutoencoderKL(down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, **blocks)
unconditional = UNet2DModel(
    attention_head_dim=2, down_block_types=["DownBlock2D", "AttnDownBlock2D"], up_block_types=["AttnUpBlock2D", "UpBlock2D"], **blocks
)
all_names = {"unet": names}
# UNet2DModel has the same attentions, though not the methods that list them.
for key, model in [("vae", vae), ("unconditional", unconditional)]:
    all_names[key] = sorted(name for name, module in model.named_modules() if isinstance(module, Attention))
(fixture.folder() / "names.json").write_text(json.dumps(all_names, indent=1) + "\n")
