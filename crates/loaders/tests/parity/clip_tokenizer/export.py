"""The ids and removed texts of transformers' CLIPTokenizer for each case of cases.json and each prompt of prompts.json."""

import json

import fixture
import torch
from tokenizer_cases import load

HERE = fixture.folder()


def removed_text(tokenizer, prompt, ids):
    """As StableDiffusionPipeline.encode_prompt finds what it warns of."""
    untruncated = tokenizer(prompt, padding="longest", return_tensors="pt").input_ids
    if untruncated.shape[-1] >= ids.shape[-1] and not torch.equal(ids, untruncated):
        return tokenizer.batch_decode(untruncated[:, tokenizer.model_max_length - 1 : -1])[0]
    return None


tensors, removed = {}, {}
prompts = json.loads((HERE / "prompts.json").read_text())
for name, case in json.loads((HERE / "cases.json").read_text()).items():
    tokenizer = load(case)
    rows = []
    removed[name] = {}
    for i, prompt in enumerate(prompts):
        limits = {"max_length": tokenizer.model_max_length, "truncation": True}
        ids = tokenizer(prompt, padding="max_length", return_tensors="pt", **limits).input_ids
        text = removed_text(tokenizer, prompt, ids)
        if text is not None:
            removed[name][i] = text
        rows.append(ids)
    # float16 would do for no vocabulary; int32 is the smallest that holds every id.
    tensors[name] = torch.cat(rows).to(torch.int32)
    print(name, tensors[name].shape, len(tokenizer), tokenizer.added_tokens_decoder)
fixture.save(tensors)
(HERE / "removed.json").write_text(json.dumps(removed, indent=0))
