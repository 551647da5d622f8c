"""Whole Euler loops of the reference."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from diffusers import EulerDiscreteScheduler

import loops

SD1 = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
PREDICTIONS = ["epsilon", "sample", "v_prediction"]
SPACINGS = ["leading", "linspace", "trailing"]
cases = [{"steps": steps, "train": [3.0, 998.0]} for steps in [1, 2, 3, 7, 20, 50]]
cases += [{"config": SD1 | {"timestep_spacing": "leading"}, "steps": steps} for steps in [1, 2, 3, 7, 20, 50]]
for schedule in ["linear", "scaled_linear", "squaredcos_cap_v2"]:
    for prediction in PREDICTIONS:
        for spacing in SPACINGS:
            config = {"beta_schedule": schedule, "prediction_type": prediction, "timestep_spacing": spacing}
            cases.append({"config": config, "steps": 7})
for sigmas in ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"]:
    for steps in [1, 2, 3, 7, 20]:
        cases.append({"config": SD1 | {sigmas: True}, "steps": steps})
    for spacing in SPACINGS:
        for final in ["zero", "sigma_min"]:
            config = {sigmas: True, "timestep_spacing": spacing, "final_sigmas_type": final, "beta_schedule": "squaredcos_cap_v2"}
            cases.append({"config": config, "steps": 9})
    cases.append({"config": SD1 | {sigmas: True, "sigma_min": 0.05, "sigma_max": 12.0}, "steps": 8})
    cases.append({"config": SD1 | {sigmas: True, "interpolation_type": "log_linear"}, "steps": 8})
for steps in [1, 2, 8, 21]:
    cases.append({"config": SD1 | {"interpolation_type": "log_linear"}, "steps": steps})
for prediction in PREDICTIONS:
    cases.append({"config": SD1 | {"timestep_type": "continuous", "prediction_type": prediction}, "steps": 8})
    cases.append({"config": SD1 | {"final_sigmas_type": "sigma_min", "prediction_type": prediction}, "steps": 8})
    zero_snr = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": prediction}
    cases.append({"config": SD1 | zero_snr, "steps": 8})
    cases.append({"config": SD1 | {"prediction_type": prediction}, "steps": 8, "options": {"s_churn": 3.0}, "seed": 2})
cases.append({"config": SD1, "steps": 8, "options": {"s_churn": 30.0, "s_tmin": 0.5, "s_tmax": 10.0, "s_noise": 1.1}})
cases.append({"config": SD1, "timesteps": [999, 845, 730, 587, 443, 310, 193, 116, 53, 13]})
cases.append({"config": SD1 | {"timestep_spacing": "leading"}, "timesteps": [999, 500, 0]})
cases.append({"config": SD1, "sigmas": [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.0]})
cases.append({"config": SD1, "sigmas": [20.0, 3.0, 0.001]})
cases.append({"config": {"trained_betas": [0.01 * i for i in range(1, 21)], "num_train_timesteps": 20}, "steps": 6, "train": [0.0, 19.0]})
cases.append({"config": {"num_train_timesteps": 20}, "steps": 33})
cases.append({"config": SD1 | {"timestep_spacing": "trailing"}, "steps": 61})
for begin in [3, 9]:
    cases.append({"config": SD1, "steps": 10, "begin": begin})
for dtype in ["f16", "bf16", "f64"]:
    for prediction in PREDICTIONS:
        cases.append({"config": SD1 | {"prediction_type": prediction}, "steps": 6, "options": {"s_churn": 2.0}, "dtype": dtype})
loops.export(EulerDiscreteScheduler, cases)
