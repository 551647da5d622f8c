"""Textual inversion embeddings as the programs that train them write them, and the vectors that are in each."""

import fixture
import numpy as np
import safetensors.torch
import torch

HERE = fixture.folder()
# That of the tiny text encoder which crates/pipelines/tests/parity/textual_inversion loads them into.
WIDTH = 16
generator = torch.Generator().manual_seed(30)
expected = {}


def vectors(name, *shape, dtype=torch.float32):
    expected[name] = (torch.randn(shape, generator=generator) * 0.5).to(dtype)
    return expected[name]


def web_ui(vectors, name, **extra):
    """AUTOMATIC1111's modules/textual_inversion/textual_inversion.py, Embedding.save."""
    return {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": name, **extra}


# diffusers' textual_inversion.py, of today (n, width) and of 2022 (width,).
safetensors.torch.save_file({"<dog>": vectors("diffusers.safetensors", 3, WIDTH)}, HERE / "diffusers.safetensors", {"format": "pt"})
(HERE / "concept").mkdir(exist_ok=True)
torch.save({"<cat-toy>": vectors("concept", WIDTH)}, HERE / "concept/learned_embeds.bin")
torch.save({"<old>": vectors("old.bin", 2, WIDTH)}, HERE / "old.bin", _use_new_zipfile_serialization=False)
several = {"<s1>": vectors("several.safetensors.1", 2, WIDTH), "<s0>": vectors("several.safetensors.0", 1, WIDTH)}
safetensors.torch.save_file(several, HERE / "several.safetensors")
# Its values lie column by column.
torch.save({"<turned>": vectors("turned.bin", WIDTH, 3).t()}, HERE / "turned.bin")
expected["turned.bin"] = expected["turned.bin"].t()

# The web UI's own, with numbers as it and others leave them.
extra = dict(step=np.int64(500), sd_checkpoint="cc6cb27103", sd_checkpoint_name="v1-5-pruned-emaonly")
torch.save(web_ui(vectors("webui.pt", 4, WIDTH), "bad-hands", **extra), HERE / "webui.pt")
torch.save(web_ui(vectors("EasyNegative.pt", 2, WIDTH).requires_grad_(), "EasyNegative", step=None, sd_checkpoint=None), HERE / "EasyNegative.pt")
# The paper's program, which the web UI reads as well: a module instead of a dictionary, and the id as a tensor.
parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors("paper.pt", 2, WIDTH))})
torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": parameters}, HERE / "paper.pt")

# kohya's train_textual_inversion.py.
torch.save({"emb_params": vectors("kohya.pt", 2, WIDTH, dtype=torch.float16)}, HERE / "kohya.pt")
kohya = {"emb_params": vectors("kohya.safetensors", 3, WIDTH, dtype=torch.bfloat16)}
safetensors.torch.save_file(kohya, HERE / "kohya.safetensors", {"ss_training_comment": "a test"})
torch.save(vectors("bare.bin", 2, WIDTH), HERE / "bare.bin")

# Stable Diffusion XL: one tensor for each text encoder.
for name in ("sdxl.safetensors", "sdxl.pt"):
    both = {"clip_l": vectors(f"{name}.clip_l", 2, WIDTH), "clip_g": vectors(f"{name}.clip_g", 2, 24)}
    safetensors.torch.save_file(both, HERE / name) if name.endswith("safetensors") else torch.save(both, HERE / name)

fixture.save(expected)
