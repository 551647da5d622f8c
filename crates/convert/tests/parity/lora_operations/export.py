"""What torch.linalg.svd leaves of the changes of two LoRA files at rank 1: one alone, and the sum of both.

The changes themselves are made by their definition from the files of ../lora_layouts; results are given times the vector 1, 1/2, 1/3 ...
"""

import pathlib

import torch
from safetensors.torch import load_file

import fixture

LAYOUTS = fixture.folder().parent / "lora_layouts"
RANK = 1
SCALES = {"kohya.safetensors": 0.7, "kohya_converted.safetensors": -0.3}


def deltas(path: pathlib.Path):
    """The change of each layer, float64, with the axes behind the first taken together."""
    tensors = load_file(path)
    for name in sorted(tensors):
        if name.endswith(".lora_down.weight"):
            layer = name.removesuffix(".lora_down.weight")
            down, up = tensors[name].double(), tensors[f"{layer}.lora_up.weight"].double()
            alpha = tensors[f"{layer}.alpha"].double()
            yield layer.replace("lora_te1_", "lora_te_"), up.flatten(1) @ down.flatten(1) * (alpha / down.shape[0])


def truncated(matrix):
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :RANK] * s[:RANK] @ vh[:RANK]


def times_vector(matrix):
    return (matrix @ (1 / torch.arange(1, matrix.shape[1] + 1, dtype=torch.float64))).float()


loras = {file: dict(deltas(LAYOUTS / file)) for file in SCALES}
result = {}
for layer, delta in loras["kohya.safetensors"].items():
    result[f"resized|{layer}"] = times_vector(truncated(delta))
    total = sum(scale * loras[file][layer] for file, scale in SCALES.items())
    result[f"merged|{layer}"] = times_vector(truncated(total))
    result[f"sum|{layer}"] = times_vector(total)
fixture.save(result)
