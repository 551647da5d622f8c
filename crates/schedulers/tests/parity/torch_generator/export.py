"""What torch's CPU generator draws: several draws in a row, of mixed kinds and sizes, for several seeds."""

import torch

import fixture

DTYPES = {"f32": torch.float32, "f64": torch.float64, "f16": torch.float16, "bf16": torch.bfloat16}
SEEDS = [0, 1, 42, 2**32 - 1, 2**32 + 7, 2**63 + 12345, 2**64 - 1]
# Each draw is kind:dtype:count, or randint:low:high:count, or randperm:count.
PROGRAMS = [
    "randn:f32:1 randn:f32:1 randn:f32:1 randn:f32:2 randn:f32:15 randn:f32:3",
    "randn:f32:16 randn:f32:17 randn:f32:31 randn:f32:32 randn:f32:100 randn:f32:5 randn:f32:1000",
    "randn:f32:7 randn:f32:20 randn:f32:2 rand:f32:3 randn:f32:4 randint:0:1000:5 randn:f32:33 randn:f32:1",
    "rand:f32:1 rand:f32:50 rand:f64:9 rand:f16:300 rand:bf16:300 rand:f32:2",
    "randn:f64:3 randn:f64:16 randn:f64:37 randn:f64:1 randn:f32:1 randn:f64:2",
    "randn:f16:5 randn:f16:16 randn:f16:40 randn:bf16:41 randn:bf16:3 randn:f32:4 randn:f16:200",
    "randint:0:2:20 randint:-5:5:20 randint:0:268435455:4 randint:0:268435456:4 randint:0:4294967296:4"
    " randint:-9223372036854775808:9223372036854775807:4 randint:-3:9223372036854775807:4 randn:f32:3",
    "randperm:1 randperm:10 randperm:100 rand:f32:2 randperm:0 randperm:7 randn:f32:2",
    "randn:f32:4 randperm:5 randn:f32:3 randn:f32:64 randn:f32:1 randint:0:9:3 randn:f32:1",
]


def draw(spec, generator):
    kind, *arguments = spec.split(":")
    if kind == "randint":
        low, high, count = map(int, arguments)
        return torch.randint(low, high, (count,), generator=generator)
    if kind == "randperm":
        return torch.randperm(int(arguments[0]), generator=generator)
    dtype = DTYPES[arguments[0]]
    return getattr(torch, kind)(int(arguments[1]), dtype=dtype, generator=generator)


tensors = {}
for seed in SEEDS:
    for program in PROGRAMS:
        generator = torch.Generator().manual_seed(seed)
        for position, spec in enumerate(program.split()):
            tensors[f"{seed}/{program}/{position}"] = draw(spec, generator)
# Enough values to meet the tails of the distribution.
tensors["long"] = torch.randn(20003, generator=torch.Generator().manual_seed(33))
fixture.save(tensors)
