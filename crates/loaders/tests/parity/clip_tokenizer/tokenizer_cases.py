"""The tokenizers of cases.json, as transformers loads them."""

import gzip
import json
import pathlib
import shutil
import tempfile

from transformers import CLIPTokenizer

HERE = pathlib.Path(__file__).resolve().parent


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
