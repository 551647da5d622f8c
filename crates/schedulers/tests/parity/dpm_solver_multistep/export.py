"""Whole DPM-Solver multistep loops of the reference."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from diffusers import DPMSolverMultistepScheduler

import loops

SD1 = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
PREDICTIONS = ["epsilon", "sample", "v_prediction"]
SPACINGS = ["leading", "linspace", "trailing"]
ALGORITHMS = ["dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver"]
cases = [{"config": SD1, "steps": steps, "train": [3, 998]} for steps in [1, 2, 3, 7, 14, 15, 20, 50]]
for algorithm in ALGORITHMS:
    final = "zero" if algorithm.endswith("++") else "sigma_min"
    base = SD1 | {"algorithm_type": algorithm, "final_sigmas_type": final}
    for order in [1, 2, 3]:
        if order == 3 and algorithm == "sde-dpmsolver":
            continue
        for solver in ["midpoint", "heun"]:
            for steps in [4, 16]:
                cases.append({"config": base | {"solver_order": order, "solver_type": solver}, "steps": steps, "seed": 9})
        for lower, euler in [(False, False), (False, True), (True, True)]:
            config = base | {"solver_order": order, "lower_order_final": lower, "euler_at_final": euler, "final_sigmas_type": "sigma_min"}
            cases.append({"config": config, "steps": 6})
            cases.append({"config": config, "steps": 17})
    for prediction in PREDICTIONS:
        cases.append({"config": base | {"prediction_type": prediction}, "steps": 7})
        thresholding = {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9}
        cases.append({"config": base | thresholding | {"prediction_type": prediction}, "steps": 7})
for schedule in ["linear", "scaled_linear", "squaredcos_cap_v2"]:
    for spacing in SPACINGS:
        for clipped in [float("-inf"), -5.1]:
            config = {"beta_schedule": schedule, "timestep_spacing": spacing, "lambda_min_clipped": clipped}
            cases.append({"config": config, "steps": 7})
for sigmas in ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"]:
    for steps in [1, 2, 3, 7, 20]:
        cases.append({"config": SD1 | {sigmas: True}, "steps": steps})
    for final in ["zero", "sigma_min"]:
        config = {sigmas: True, "final_sigmas_type": final}
        cases.append({"config": config, "steps": 9})
        cases.append({"config": config | {"beta_schedule": "squaredcos_cap_v2"}, "steps": 9, "may_crash": True})
    # Fields that came from an Euler scheduler's config.
    cases.append({"config": SD1 | {sigmas: True, "sigma_min": 0.05, "sigma_max": 12.0}, "steps": 8})
for prediction in PREDICTIONS + ["flow_prediction"]:
    flow = {"use_flow_sigmas": True, "prediction_type": prediction}
    cases.append({"config": flow | {"flow_shift": 3.0}, "steps": 8})
cases.append({"config": {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "use_dynamic_shifting": True}, "steps": 8, "mu": 0.6})
cases.append({"config": {"use_karras_sigmas": True, "use_lu_lambdas": True}, "steps": 8})
for variance in ["learned", "learned_range"]:
    for algorithm, final in [("dpmsolver++", "zero"), ("dpmsolver", "sigma_min")]:
        config = {"variance_type": variance, "algorithm_type": algorithm, "final_sigmas_type": final}
        cases.append({"config": config, "steps": 6, "channels": 6})
for prediction in PREDICTIONS:
    zero_snr = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": prediction}
    cases.append({"config": SD1 | zero_snr, "steps": 8})
cases.append({"config": {"algorithm_type": "deis", "solver_type": "logrho", "final_sigmas_type": "sigma_min"}, "steps": 6})
cases.append({"config": SD1 | {"algorithm_type": "sde-dpmsolver++"}, "steps": 6, "variance_noise": True})
cases.append({"config": SD1, "timesteps": [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]})
cases.append({"config": SD1, "timesteps": [700, 20]})
cases.append({"config": {"trained_betas": [0.01 * i for i in range(1, 21)], "num_train_timesteps": 20}, "steps": 6, "train": [0, 19]})
for begin in [3, 9]:
    cases.append({"config": SD1, "steps": 10, "begin": begin})
for dtype in ["f16", "bf16"]:
    for algorithm in ["dpmsolver++", "sde-dpmsolver++"]:
        for prediction in PREDICTIONS:
            cases.append({"config": SD1 | {"prediction_type": prediction, "algorithm_type": algorithm}, "steps": 6, "dtype": dtype})
loops.export(DPMSolverMultistepScheduler, cases)
