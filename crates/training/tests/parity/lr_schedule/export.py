"""The factors of diffusers' learning-rate schedules at every step."""

import json

import torch
from diffusers.optimization import get_scheduler

import fixture

RULES = "1:10,0.1:20,0.01:30,0.005"
CASES = []
for name in ["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]:
    for warmup, steps in [(0, 50), (10, 50), (50, 50), (3, 7)]:
        CASES.append({"name": name, "num_warmup_steps": warmup, "num_training_steps": steps})
CASES += [
    {"name": "cosine_with_restarts", "num_warmup_steps": 4, "num_training_steps": 47, "num_cycles": 3},
    {"name": "polynomial", "num_warmup_steps": 4, "num_training_steps": 47, "power": 2.5},
    {"name": "polynomial", "num_warmup_steps": 0, "num_training_steps": 40, "power": 0.5},
    {"name": "piecewise_constant", "step_rules": RULES},
    {"name": "piecewise_constant", "step_rules": "0.25"},
]
STEPS = 60
LEARNING_RATE = 2e-5

tensors = {}
for index, case in enumerate(CASES):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LEARNING_RATE)
    scheduler = get_scheduler(optimizer=optimizer, **case)
    factors = []
    for step in range(STEPS):
        try:
            factors.append(scheduler.lr_lambdas[0](step))
        except ZeroDivisionError:
            factors.append(float("nan"))  # no steps to decay in
    tensors[str(index)] = torch.tensor(factors, dtype=torch.float64)
fixture.save(tensors)
cases = {"learning_rate": LEARNING_RATE, "cases": CASES}
(fixture.folder() / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")
