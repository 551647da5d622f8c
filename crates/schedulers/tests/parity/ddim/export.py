"""Whole DDIM loops of the reference."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from diffusers import DDIMScheduler

import loops

SD1 = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
PREDICTIONS = ["epsilon", "sample", "v_prediction"]
cases = [{"steps": steps} for steps in [1, 2, 3, 7, 20, 50]]
cases += [{"config": SD1, "steps": steps, "train": [0, 999]} for steps in [1, 2, 3, 7, 20, 50]]
for schedule in ["linear", "scaled_linear", "squaredcos_cap_v2"]:
    for prediction in PREDICTIONS:
        for spacing in ["leading", "linspace", "trailing"]:
            config = {"beta_schedule": schedule, "prediction_type": prediction, "timestep_spacing": spacing}
            cases.append({"config": config, "steps": 7, "train": [3, 500]})
for eta in [0.3, 1.0]:
    for prediction in PREDICTIONS:
        cases.append({"config": SD1 | {"prediction_type": prediction}, "steps": 10, "options": {"eta": eta}, "seed": 5})
        cases.append({"config": {"prediction_type": prediction}, "steps": 10, "options": {"eta": eta, "use_clipped_model_output": True}, "seed": 6})
cases.append({"config": SD1, "steps": 4, "options": {"eta": 0.7}, "variance_noise": True})
for prediction in PREDICTIONS:
    config = {"prediction_type": prediction, "thresholding": True, "sample_max_value": 2.0}
    cases.append({"config": config, "steps": 10})
    cases.append({"config": config | {"dynamic_thresholding_ratio": 0.6, "clip_sample_range": 0.5}, "steps": 10, "options": {"eta": 0.5}})
    cases.append({"config": {"prediction_type": prediction, "clip_sample_range": 0.4}, "steps": 5})
    zero_snr = {"prediction_type": prediction, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    cases.append({"config": SD1 | zero_snr, "steps": 9, "not_finite": True, "train": [998, 999]})
    cases.append({"config": zero_snr, "steps": 9, "not_finite": True})
cases.append({"config": {"trained_betas": [0.01 * i for i in range(1, 21)], "num_train_timesteps": 20}, "steps": 6})
cases.append({"config": {"num_train_timesteps": 37}, "steps": 37})
cases.append({"config": {"num_train_timesteps": 1}, "steps": 1})
cases.append({"config": SD1 | {"timestep_spacing": "trailing"}, "steps": 23, "begin": 11})
cases.append({"config": SD1, "steps": 999})
for dtype in ["f16", "bf16", "f64"]:
    for prediction in PREDICTIONS:
        cases.append({"config": SD1 | {"prediction_type": prediction}, "steps": 6, "options": {"eta": 0.4}, "dtype": dtype, "train": [10, 700]})
loops.export(DDIMScheduler, cases)
