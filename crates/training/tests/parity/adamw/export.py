"""torch.optim.AdamW over several steps: two groups, a schedule, a parameter that has no gradient in one step."""

import json

import torch

import fixture

CASES = {
    "default": {"betas": [0.9, 0.999], "eps": 1e-8, "groups": [[1e-3, 1e-2], [1e-3, 1e-2]], "factors": [1.0] * 5},
    "groups": {"betas": [0.9, 0.999], "eps": 1e-8, "groups": [[1e-2, 0.0], [3e-4, 0.1]], "factors": [0.0, 0.25, 0.5, 1.0, 0.7]},
    "betas": {"betas": [0.5, 0.95], "eps": 1e-3, "groups": [[1e-1, 0.3], [1e-2, 0.0]], "factors": [1.0] * 5},
    "no_momentum": {"betas": [0.0, 0.0], "eps": 1e-6, "groups": [[1e-3, 1e-2], [1e-3, 0.0]], "factors": [1.0] * 5},
}
SHAPES = [[(40, 9), (7,)], [(2, 3, 3, 3), (1,)]]
SKIPPED = (2, "b0")

generator = torch.Generator().manual_seed(0)
tensors = {}
for group, shapes in zip("ab", SHAPES):
    for index, shape in enumerate(shapes):
        tensors[f"start/{group}{index}"] = torch.randn(shape, generator=generator)
        for step in range(5):
            scale = 10.0 ** (step - 3)
            tensors[f"gradient/{step}/{group}{index}"] = torch.randn(shape, generator=generator) * scale
names = [[f"{group}{index}" for index in range(2)] for group in "ab"]
for case, options in CASES.items():
    parameters = {name: torch.nn.Parameter(tensors[f"start/{name}"].clone()) for group in names for name in group}
    groups = [
        {"params": [parameters[name] for name in group], "lr": rate, "weight_decay": decay}
        for group, (rate, decay) in zip(names, options["groups"])
    ]
    optimizer = torch.optim.AdamW(groups, betas=options["betas"], eps=options["eps"], foreach=False)
    for step, factor in enumerate(options["factors"]):
        for group, (rate, _) in zip(optimizer.param_groups, options["groups"]):
            group["lr"] = rate * factor
        for name, parameter in parameters.items():
            parameter.grad = None if (step, name) == SKIPPED else tensors[f"gradient/{step}/{name}"].clone()
        optimizer.step()
        for name, parameter in parameters.items():
            tensors[f"{case}/{step}/{name}"] = parameter.data.clone()
fixture.save(tensors)
(fixture.folder() / "cases.json").write_text(json.dumps({"skipped": SKIPPED, "cases": CASES}, indent=1) + "\n")
