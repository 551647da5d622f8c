"""Whole Euler ancestral loops of the reference."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from diffusers import EulerAncestralDiscreteScheduler

import loops

SD1 = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
PREDICTIONS = ["epsilon", "v_prediction"]
cases = [{"steps": steps, "train": [3.0, 998.0]} for steps in [1, 2, 3, 7, 20, 50]]
cases += [{"config": SD1 | {"timestep_spacing": "leading"}, "steps": steps, "seed": 8} for steps in [1, 2, 3, 7, 20, 50]]
for schedule in ["linear", "scaled_linear", "squaredcos_cap_v2"]:
    for prediction in PREDICTIONS:
        for spacing in ["leading", "linspace", "trailing"]:
            config = {"beta_schedule": schedule, "prediction_type": prediction, "timestep_spacing": spacing}
            cases.append({"config": config, "steps": 7, "seed": 11})
            cases.append({"config": config | {"rescale_betas_zero_snr": True}, "steps": 5, "seed": 12})
cases.append({"config": {"trained_betas": [0.01 * i for i in range(1, 21)], "num_train_timesteps": 20}, "steps": 6, "train": [0.0, 19.0]})
cases.append({"config": {"num_train_timesteps": 20}, "steps": 33})
for begin in [3, 9]:
    cases.append({"config": SD1, "steps": 10, "begin": begin})
for dtype in ["f16", "bf16", "f64"]:
    for prediction in PREDICTIONS:
        cases.append({"config": SD1 | {"prediction_type": prediction}, "steps": 6, "dtype": dtype})
loops.export(EulerAncestralDiscreteScheduler, cases)
