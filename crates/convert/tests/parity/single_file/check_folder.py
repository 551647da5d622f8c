"""Opens a converted folder in the reference library, offline, and compares it with the checkpoint that it was made of.

`python check_folder.py FOLDER CHECKPOINT.safetensors`. Pipelines are loaded a second time by `from_single_file` with the folder's configs:
both must have the same weights, bit for bit, and a pipeline must paint.
"""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import json
import pathlib

import diffusers
import safetensors.torch
import torch
import transformers

folder, checkpoint = pathlib.Path(sys.argv[1]), sys.argv[2]
dtypes = {t.dtype for t in safetensors.torch.load_file(checkpoint).values() if t.is_floating_point()}
dtype = max(dtypes, key=lambda dtype: dtype.itemsize)


def load_model(path):
    config = json.loads((path / "config.json").read_text())
    name = config.get("_class_name") or config["architectures"][0]
    model_class = getattr(diffusers, name, None) or getattr(transformers, name)
    model, info = model_class.from_pretrained(path, output_loading_info=True, **({"torch_dtype": dtype} if hasattr(diffusers, name) else {"dtype": dtype}))
    problems = {key: value for key, value in info.items() if value}
    assert not problems, (path, problems)
    return model_class, model


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8)), name
    return len(a)


if (folder / "config.json").exists():
    model_class, model = load_model(folder)
    if hasattr(model_class, "from_single_file"):
        print(model_class.__name__, same(model, model_class.from_single_file(checkpoint, config=str(folder), torch_dtype=dtype)), "tensors")
    sys.exit()

pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype)
for part in sorted(folder.iterdir()):
    if (part / "config.json").exists():
        load_model(part)
again = type(pipeline).from_single_file(checkpoint, config=str(folder), torch_dtype=dtype, local_files_only=True)
count = sum(same(getattr(pipeline, name), getattr(again, name)) for name in ("unet", "vae", "text_encoder", "text_encoder_2")
            if getattr(pipeline, name, None) is not None)
print(type(pipeline).__name__, type(pipeline.scheduler).__name__, count, "tensors are those of from_single_file")
tokenizer = pipeline.tokenizer or pipeline.tokenizer_2
ids = tokenizer("a photo of a cat", padding="max_length", max_length=77).input_ids
assert ids[:6] == [49406, 320, 1125, 539, 320, 2368] and ids[6] == 49407, ids[:8]
encoder = getattr(pipeline, "text_encoder_2", None) or pipeline.text_encoder
if encoder.config.vocab_size == 49408 and "Inpaint" not in type(pipeline).__name__ and dtype == torch.float32:
    image = pipeline("a photo of a cat", num_inference_steps=2, height=64, width=64, output_type="np").images
    print("painted", image.shape, float(image.mean()))
