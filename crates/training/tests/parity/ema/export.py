"""diffusers' EMAModel following parameters that change at random."""

import json

import torch
from diffusers.training_utils import EMAModel

import fixture

CASES = {
    "default": {},
    "low": {"decay": 0.5, "min_decay": 0.2},
    "late": {"update_after_step": 3, "decay": 0.9},
    "warmup": {"use_ema_warmup": True, "inv_gamma": 2.0, "power": 0.75},
    "warmup_default": {"use_ema_warmup": True, "min_decay": 0.3},
}
STEPS = 8

generator = torch.Generator().manual_seed(0)
shapes = {"a": (5, 4), "b": (3,)}
tensors = {
    f"parameter/{step}/{name}": torch.randn(shape, generator=generator)
    for step in range(STEPS + 1)
    for name, shape in shapes.items()
}
for case, options in CASES.items():
    parameters = {name: torch.nn.Parameter(tensors[f"parameter/0/{name}"].clone()) for name in shapes}
    ema = EMAModel(parameters.values(), **options)
    decays = []
    for step in range(1, STEPS + 1):
        for name, parameter in parameters.items():
            parameter.data.copy_(tensors[f"parameter/{step}/{name}"])
        ema.step(parameters.values())
        decays.append(ema.cur_decay_value)
        for name, average in zip(shapes, ema.shadow_params):
            tensors[f"{case}/{step}/{name}"] = average.clone()
    tensors[f"{case}/decay"] = torch.tensor(decays, dtype=torch.float64)
    tensors[f"{case}/late_decay"] = torch.tensor([ema.get_decay(step) for step in [100, 5000, 200000]], dtype=torch.float64)
fixture.save(tensors)
(fixture.folder() / "cases.json").write_text(json.dumps(CASES, indent=1) + "\n")
