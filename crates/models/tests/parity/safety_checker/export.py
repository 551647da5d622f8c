"""A tiny safety checker: CLIP's view of pictures, and what is found in them."""

import json

import fixture
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from diffusers.pipelines.stable_diffusion.safety_checker import cosine_distance
from transformers import CLIPConfig

# One column and one row of pixels more than patches.
VISION = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=17, patch_size=4, hidden_act="quick_gelu"
)
model = fixture.randomize(StableDiffusionSafetyChecker(CLIPConfig(vision_config=VISION, projection_dim=12)).eval(), seed=4)
# `randomize` leaves what is not trained as it was.
generator = torch.Generator().manual_seed(6)
for name in ("concept_embeds", "special_care_embeds"):
    getattr(model, name).data.copy_(torch.randn(getattr(model, name).shape, generator=generator))
clip_input = torch.randn(4, 3, 17, 17, generator=generator)
pooled = model.vision_model(clip_input).pooler_output
embeds = model.visual_projection(pooled)

# A concept that the last picture is like, and the second one only because it is like one of special care.
concepts, special = cosine_distance(embeds, model.concept_embeds), cosine_distance(embeds, model.special_care_embeds)
thresholds = concepts.max(dim=0).values + 0.1
thresholds[5] = concepts[1, 5] + 0.004
model.concept_embeds_weights.data.copy_(thresholds)
model.special_care_embeds_weights.data.copy_(special.max(dim=0).values + 0.1)
model.special_care_embeds_weights.data[1] = special[2, 1] - 0.05

scores = []


def rounded(number, digits, keep=scores):
    keep.append(round(number, digits))
    return keep[-1]


StableDiffusionSafetyChecker.forward.__wrapped__.__globals__["round"] = rounded
pictures, flags = model(clip_input, torch.ones(4, 3, 2, 2))
scores = torch.tensor([float(score) for score in scores]).reshape(4, 3 + 17)
print(flags, scores)
state_dict = {
    # Files have one more step, which transformers 5 leaves away.
    f"model.{'vision_model.' if key.startswith('vision_model.') else ''}{key}": value
    for key, value in model.state_dict().items()
}
fixture.save(
    state_dict
    | {"clip_input": clip_input, "pooler_output": pooled, "special_scores": scores[:, :3], "concept_scores": scores[:, 3:], "flags": torch.tensor(flags).to(torch.uint8)}
)
config = json.loads(model.config.to_json_string(use_diff=False))
(fixture.folder() / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
