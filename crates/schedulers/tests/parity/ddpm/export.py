"""Whole DDPM loops of the reference."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from diffusers import DDPMScheduler

import loops

PREDICTIONS = ["epsilon", "sample", "v_prediction"]
cases = [{"steps": steps} for steps in [1, 2, 3, 7, 20, 50]]
for schedule in ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"]:
    for prediction in PREDICTIONS:
        for spacing in ["leading", "linspace", "trailing"]:
            config = {"beta_schedule": schedule, "prediction_type": prediction, "timestep_spacing": spacing}
            cases.append({"config": config, "steps": 7, "train": [3, 500], "seed": 3})
for variance in ["fixed_small", "fixed_small_log", "fixed_large", "learned", "learned_range"]:
    for prediction in PREDICTIONS:
        case = {"config": {"variance_type": variance, "prediction_type": prediction, "clip_sample": False}, "steps": 8, "seed": 4}
        if variance.startswith("learned"):
            case["channels"] = 6
            case["not_finite"] = variance == "learned"
        cases.append(case)
for prediction in PREDICTIONS:
    config = {"prediction_type": prediction, "thresholding": True, "sample_max_value": 1.7, "dynamic_thresholding_ratio": 0.8}
    cases.append({"config": config, "steps": 10})
    cases.append({"config": {"prediction_type": prediction, "clip_sample_range": 0.4}, "steps": 5})
    zero_snr = {"prediction_type": prediction, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    cases.append({"config": zero_snr, "steps": 9, "not_finite": True, "train": [998, 999]})
    cases.append({"config": {"prediction_type": prediction}, "timesteps": [999, 700, 301, 300, 12, 0]})
cases.append({"timesteps": [500, 20]})
cases.append({"config": {"trained_betas": [0.01 * i for i in range(1, 21)], "num_train_timesteps": 20}, "steps": 6})
cases.append({"config": {"num_train_timesteps": 37}, "steps": 37})
cases.append({"config": {"steps_offset": 1}, "steps": 20, "begin": 9})
cases.append({"steps": 1000})
for dtype in ["f16", "bf16", "f64"]:
    for prediction in PREDICTIONS:
        cases.append({"config": {"prediction_type": prediction}, "steps": 6, "dtype": dtype, "train": [10, 700]})
loops.export(DDPMScheduler, cases)
