"""The tiny Stable Diffusion of text_to_image with a safety checker that finds something in one of two pictures, and what CLIP's image
processor makes of pictures."""

import json
import shutil
import warnings

import fixture
import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from diffusers.pipelines.stable_diffusion.safety_checker import cosine_distance
from PIL import Image
from transformers import CLIPConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

warnings.filterwarnings("ignore")
here = fixture.folder()
random = np.random.default_rng(3)
tensors = {}

for name, case in json.loads((here / "processors.json").read_text()).items():
    width, height = case["picture"]
    pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    tensors[f"{name}.from"] = torch.from_numpy(pixels)
    tensors[f"{name}.to"] = CLIPImageProcessorPil(**case["config"])(Image.fromarray(pixels), return_tensors="pt").pixel_values

VISION = dict(hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4)
checker = fixture.randomize(StableDiffusionSafetyChecker(CLIPConfig(vision_config=VISION, projection_dim=6)).eval(), seed=4)
generator = torch.Generator().manual_seed(6)
for name in ("concept_embeds", "special_care_embeds"):
    getattr(checker, name).data.copy_(torch.randn(getattr(checker, name).shape, generator=generator))
processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
pipeline = StableDiffusionPipeline.from_pretrained(here.parent / "text_to_image/sd1", safety_checker=None, requires_safety_checker=False)
pipeline.set_progress_bar_config(disable=True)


def paint(output_type):
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    prompts = ["a large red circle on a blue background", "a star"]
    return pipeline(prompts, num_inference_steps=3, guidance_scale=4.0, width=40, height=32, generator=generators, output_type=output_type)


# One concept is between what both pictures are like.
clip_input = processor(paint("pil").images, return_tensors="pt").pixel_values
cosines = cosine_distance(checker.visual_projection(checker.vision_model(clip_input)[1]), checker.concept_embeds)
difference = cosines[1] - cosines[0]
concept = difference.argmax()
print("difference", difference.max())
thresholds = torch.full((17,), 2.0)
thresholds[concept] = (cosines[0, concept] + cosines[1, concept]) / 2
checker.concept_embeds_weights.data.copy_(thresholds)
checker.special_care_embeds_weights.data.fill_(2.0)

for folder in ("safety_checker", "feature_extractor"):
    shutil.rmtree(here / folder, ignore_errors=True)
checker.save_pretrained(here / "safety_checker")
processor.save_pretrained(here / "feature_extractor")
pipeline.safety_checker, pipeline.feature_extractor = checker, processor
output = paint("pil")
print(output.nsfw_content_detected)
tensors["flags"] = torch.tensor(output.nsfw_content_detected).to(torch.uint8)
tensors["pictures"] = torch.from_numpy(np.stack([np.array(one) for one in output.images]))
tensors["tensor"] = paint("pt").images
fixture.save(tensors)
