"""torch.optim.SGD over several steps, with and without momentum, Nesterov and weight decay."""

import json

import torch

import fixture

CASES = {
    "plain": {"momentum": 0.0, "nesterov": False, "learning_rate": 0.1, "weight_decay": 0.0},
    "weight_decay": {"momentum": 0.0, "nesterov": False, "learning_rate": 0.1, "weight_decay": 0.05},
    "momentum": {"momentum": 0.9, "nesterov": False, "learning_rate": 0.02, "weight_decay": 0.01},
    "nesterov": {"momentum": 0.8, "nesterov": True, "learning_rate": 0.02, "weight_decay": 0.01},
}

generator = torch.Generator().manual_seed(0)
tensors = {"start": torch.randn(30, 5, generator=generator)}
for step in range(5):
    tensors[f"gradient/{step}"] = torch.randn(30, 5, generator=generator)
for case, options in CASES.items():
    parameter = torch.nn.Parameter(tensors["start"].clone())
    optimizer = torch.optim.SGD(
        [parameter],
        lr=options["learning_rate"],
        momentum=options["momentum"],
        nesterov=options["nesterov"],
        weight_decay=options["weight_decay"],
        foreach=False,
    )
    for step in range(5):
        parameter.grad = tensors[f"gradient/{step}"].clone()
        optimizer.step()
        tensors[f"{case}/{step}"] = parameter.data.clone()
fixture.save(tensors)
(fixture.folder() / "cases.json").write_text(json.dumps(CASES, indent=1) + "\n")
