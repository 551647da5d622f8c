"""The ids and removed texts of transformers' CLIPTokenizer for each case of cases.json and each prompt of prompts.json."""

import gzip
import json
import pathlib
import shutil
import tempfile

import fixture
import torch
from transformers import CLIPTokenizer

HERE = fixture.folder()


def bytes_to_unicode():
    """CLIP's characters for the 256 bytes, in the order of its vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def write_clip_vocabulary(folder):
    """vocab.json and merges.txt of the real CLIP, from its list of merges (openai/CLIP, simple_tokenizer.py)."""
    lines = gzip.open(HERE.parents[3] / "convert" / "assets" / "bpe_simple_vocab_16e6.txt.gz").read().decode().split("\n")
    merges = lines[1 : 49152 - 256 - 2 + 1]
    characters = bytes_to_unicode()
    tokens = characters + [c + "</w>" for c in characters] + ["".join(merge.split()) for merge in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(merge + "\n" for merge in merges), encoding="utf-8")


def load(case):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if case["vocabulary"] == "clip":
            write_clip_vocabulary(folder)
        else:
            shutil.copytree(HERE / case["vocabulary"], folder, dirs_exist_ok=True)
        for file, contents in case["files"].items():
            if contents is None:
                (folder / file).unlink()
            else:
                (folder / file).write_text(json.dumps(contents))
        return CLIPTokenizer.from_pretrained(folder)


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
