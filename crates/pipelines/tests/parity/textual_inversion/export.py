"""Prompts with textual inversion embeddings: how diffusers writes them out, encodes them and paints them, for every file layout.

The models are those of text_to_image, the files those of crates/convert/tests/parity/embedding_layouts; run their exporters first.
"""

import json
import warnings

import fixture
import numpy as np
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextModel, CLIPTokenizer

warnings.filterwarnings("ignore")
# diffusers 0.42.1 looks for `text_model`, which transformers 5 no longer has: without this, clip_skip fails.
CLIPTextModel.text_model = property(lambda self: self)
HERE = fixture.folder()
MODELS = HERE.parent / "text_to_image"
FILES = HERE.parents[3] / "convert/tests/parity/embedding_layouts"

# What diffusers does not read itself (it refuses numpy's numbers and modules), as it would be handed to it.
BY_HAND = {
    "several.safetensors": lambda: [{token: value} for token, value in safetensors.torch.load_file(FILES / "several.safetensors").items()],
    "webui.pt": lambda: [torch.load(FILES / "webui.pt", weights_only=False)],
    "paper.pt": lambda: [torch.load(FILES / "paper.pt", weights_only=False)["string_to_param"]["*"].data],
}


def load(pipeline, name, token):
    for source in BY_HAND.get(name, lambda: [str(FILES / name)])():
        pipeline.load_textual_inversion(source, token=token)


def unload(pipeline, token):
    # diffusers takes one vector's token only; all that belong to the embedding are meant here.
    added = pipeline.tokenizer.added_tokens_encoder
    tokens = [name for name in added if name == token or (name.startswith(token + "_") and name[len(token) + 1 :].isdigit())]
    pipeline.unload_textual_inversion(tokens)


def prompts():
    """Prompts as diffusers writes them out, with tokens of several vectors and of one."""
    tokenizer = CLIPTokenizer.from_pretrained(MODELS / "sd1/tokenizer")
    for token, count in [("<cat>", 3), ("EasyNegative", 2), ("cat-toy", 2), ("my style", 2), ("<one>", 1), ("<seven>", 12), ("straße", 2), ("<cat-2>", 2)]:
        tokenizer.add_tokens([token] + [f"{token}_{i}" for i in range(1, count)])
    mixin = StableDiffusionPipeline.maybe_convert_prompt, StableDiffusionPipeline._maybe_convert_prompt
    self = type("Mixin", (), {"_maybe_convert_prompt": mixin[1]})()
    texts = json.loads((HERE / "prompts.json").read_text())
    return {text: mixin[0](self, text, tokenizer) for text in texts}


(HERE / "converted.json").write_text(json.dumps(prompts(), indent=1, ensure_ascii=False))

tensors = {}
for name, case in json.loads((HERE / "cases.json").read_text()).items():
    folder = MODELS / case.get("model", "sd1")
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    for file, token in zip(case["files"], case["tokens"]):
        load(pipeline, file, token)
    for token in case.get("unload", []):
        unload(pipeline, token)
    negative = case.get("negative_prompt", "")
    arguments = dict(num_images_per_prompt=1, do_classifier_free_guidance=True, negative_prompt=negative, clip_skip=case.get("clip_skip"))
    embeds = pipeline.encode_prompt(case["prompt"], "cpu", **arguments)
    tensors[f"{name}.prompt_embeds"], tensors[f"{name}.negative_prompt_embeds"] = embeds
    settings = dict(width=32, height=32, num_inference_steps=4, guidance_scale=4.0, clip_skip=case.get("clip_skip"))
    picture = pipeline(case["prompt"], negative_prompt=negative, generator=torch.Generator().manual_seed(3), **settings).images[0]
    tensors[f"{name}.picture"] = torch.from_numpy(np.array(picture))
fixture.save(tensors)
