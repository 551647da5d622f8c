"""Tiny CLIP text encoders: both activations, both end-of-text rules, with and without projection, every hidden state."""

import fixture
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

TINY = dict(
    vocab_size=60, hidden_size=24, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
    max_position_embeddings=16, bos_token_id=0, pad_token_id=1,
)  # fmt: skip

VARIANTS = {
    # SD 1.x: quick_gelu, the legacy rule (the highest id).
    "legacy": (CLIPTextModel, dict(hidden_act="quick_gelu", eos_token_id=2, projection_dim=24)),
    # SD 2.x: gelu, the end-of-text id itself, one head.
    "gelu": (CLIPTextModel, dict(hidden_act="gelu", eos_token_id=57, num_attention_heads=1, layer_norm_eps=1e-3)),
    # SDXL's second one.
    "projection": (
        CLIPTextModelWithProjection,
        dict(hidden_act="gelu", eos_token_id=57, projection_dim=20, num_attention_heads=4, num_hidden_layers=2),
    ),
}

generator = torch.Generator().manual_seed(5)
input_ids = torch.randint(0, 57, (4, 16), generator=generator)
input_ids[0, 9:] = 57  # one end, then padding with the same id
input_ids[1, 5] = 57  # one end; ids after it that are higher
input_ids[1, 8] = 59
input_ids[1, 11] = 59
input_ids[2, 15] = 57  # a prompt that fills all positions
input_ids[3, 3] = 58  # no end at all

tensors = {"input_ids": input_ids}
for name, (model_class, options) in VARIANTS.items():
    model = fixture.randomize(model_class(CLIPTextConfig(**{**TINY, **options})).eval(), seed=len(name))
    for key, value in model.state_dict().items():
        # transformers 5 writes no prefix for the model without projection: loaders add it.
        path = key if key.startswith("text_") else f"text_model.{key}"
        tensors[f"{name}.model.{path}"] = value
    for length in [16, 7]:
        output = model(input_ids[:, :length], output_hidden_states=True)
        prefix = f"{name}.{length}"
        tensors[f"{prefix}.last_hidden_state"] = output.last_hidden_state
        if "text_embeds" in output:
            tensors[f"{prefix}.text_embeds"] = output.text_embeds
        else:
            tensors[f"{prefix}.pooler_output"] = output.pooler_output
        for layer, hidden_state in enumerate(output.hidden_states if length == 16 else []):
            tensors[f"{prefix}.hidden_states.{layer}"] = hidden_state
    # What pipelines do for clip_skip.
    inner = model.text_model if hasattr(model, "text_model") else model
    skipped = model(input_ids, output_hidden_states=True).hidden_states[-2]
    tensors[f"{name}.clip_skip_1"] = inner.final_layer_norm(skipped)

fixture.save(tensors)
