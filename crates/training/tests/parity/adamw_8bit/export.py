"""bitsandbytes' AdamW8bit in the arithmetic of its CPU backend.

The CPU backend's own quantisation looks codes up in a table that is coarse near zero; its default backend and its GPU kernels take the
nearest number of the map, and so does this script. The dequantised states, the formulae and the maps are bitsandbytes' own.
"""

import bitsandbytes
import bitsandbytes.backends.cpu.ops as cpu_ops
import torch

import fixture

BLOCK = 256


def quantise(values, code, absmax_out, codes_out, block):
    """`quantize_blockwise` of bitsandbytes/backends/default/ops.py."""
    padded = torch.nn.functional.pad(values.reshape(-1), (0, -values.numel() % block)).reshape(-1, block)
    absmax = padded.abs().max(dim=-1)[0]
    scaled = torch.clamp(padded * (1.0 / absmax.clamp(min=1e-38)).view(-1, 1), -1, 1).reshape(-1)[: values.numel()]
    bounds = (code[:-1] + code[1:]) / 2
    codes_out.copy_(torch.bucketize(scaled, bounds, out_int32=True).to(torch.uint8).reshape(values.shape))
    absmax_out.copy_(absmax)


cpu_ops._quant_blockwise_fp32_direct = quantise

generator = torch.Generator().manual_seed(0)
shapes = {"large": (37, 113), "small": (10, 20)}
tensors = {}
for name, shape in shapes.items():
    tensors[f"start/{name}"] = torch.randn(shape, generator=generator)
    for step in range(3):
        # Columns of very different sizes: within a block, the map is used from end to end.
        sizes = torch.logspace(-5, 0, shape[1])
        tensors[f"gradient/{step}/{name}"] = torch.randn(shape, generator=generator) * sizes
parameters = {name: torch.nn.Parameter(tensors[f"start/{name}"].clone()) for name in shapes}
optimizer = bitsandbytes.optim.AdamW8bit(parameters.values(), lr=1e-3, weight_decay=0.05)
for step in range(3):
    for name, parameter in parameters.items():
        parameter.grad = tensors[f"gradient/{step}/{name}"].clone()
    optimizer.step()
    for name, parameter in parameters.items():
        tensors[f"after/{step}/{name}"] = parameter.data.clone()
    state = optimizer.state[parameters["large"]]
    for ours, theirs in [("exp_avg", "1"), ("exp_avg_sq", "2")]:
        tensors[f"state/{step}/large.{ours}"] = state[f"state{theirs}"].clone()
        tensors[f"state/{step}/large.{ours}.absmax"] = state[f"absmax{theirs}"].clone()
fixture.save(tensors)
