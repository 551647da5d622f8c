"""Whole PNDM loops of the reference, with and without Runge-Kutta steps."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from diffusers import PNDMScheduler

import loops

SD1 = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "skip_prk_steps": True, "steps_offset": 1}
cases = [{"config": SD1, "steps": steps, "train": [1, 900]} for steps in [1, 2, 3, 4, 5, 7, 20, 50]]
cases += [{"steps": steps, "train": [1, 900]} for steps in [4, 5, 7, 20, 50]]
for schedule in ["linear", "scaled_linear", "squaredcos_cap_v2"]:
    for prediction in ["epsilon", "v_prediction"]:
        for spacing in ["leading", "linspace", "trailing"]:
            for skip in [True, False]:
                for alpha in [True, False]:
                    config = {"beta_schedule": schedule, "prediction_type": prediction, "timestep_spacing": spacing}
                    config |= {"skip_prk_steps": skip, "set_alpha_to_one": alpha}
                    cases.append({"config": config, "steps": 7 if skip else 11})
cases.append({"config": {"trained_betas": [0.01 * i for i in range(1, 41)], "num_train_timesteps": 40, "skip_prk_steps": True}, "steps": 6})
for begin in [1, 2, 5]:
    cases.append({"config": SD1, "steps": 10, "begin": begin})
for dtype in ["f16", "bf16", "f64"]:
    for skip in [True, False]:
        cases.append({"config": SD1 | {"skip_prk_steps": skip}, "steps": 6, "dtype": dtype})
loops.export(PNDMScheduler, cases)
