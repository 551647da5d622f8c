"""What the reference's from_config makes of each scheduler's config for each other scheduler, and what it writes."""

import json
import warnings

import diffusers

import fixture

warnings.filterwarnings("ignore")
TARGETS = [
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
]
SD1 = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
SOURCES = [(name, {}) for name in TARGETS] + [(name, SD1) for name in TARGETS]
SOURCES += [
    ("DDIMScheduler", SD1 | {"clip_sample": False, "set_alpha_to_one": False, "prediction_type": "v_prediction"}),
    ("DDIMScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "thresholding": True}),
    ("DDPMScheduler", {"variance_type": "learned_range", "num_train_timesteps": 4, "trained_betas": [0.1, 0.2, 0.25, 0.5]}),
    ("PNDMScheduler", SD1 | {"skip_prk_steps": True, "set_alpha_to_one": False, "an_unknown_field": [1, {"a": None}]}),
    ("DPMSolverMultistepScheduler", SD1 | {"use_karras_sigmas": True, "solver_order": 3, "lambda_min_clipped": -5.1}),
    ("DPMSolverMultistepScheduler", SD1 | {"algorithm_type": "sde-dpmsolver++", "use_lu_lambdas": True, "variance_type": "learned"}),
    ("EulerDiscreteScheduler", SD1 | {"sigma_min": 0.03, "sigma_max": 14.5, "use_karras_sigmas": True}),
    ("EulerDiscreteScheduler", SD1 | {"interpolation_type": "log_linear", "timestep_type": "continuous"}),
    ("EulerAncestralDiscreteScheduler", SD1 | {"timestep_spacing": "leading"}),
    ("HeunDiscreteScheduler", SD1 | {"use_exponential_sigmas": True}),
    ("UniPCMultistepScheduler", SD1 | {"solver_type": "bh1", "use_flow_sigmas": False}),
    ("UniPCMultistepScheduler", SD1),
    ("DEISMultistepScheduler", SD1 | {"solver_type": "logrho"}),
    ("LMSDiscreteScheduler", SD1 | {"timestep_spacing": "trailing"}),
]


def plain(config):
    """A config as JSON can say it, with lists in place of sets and tuples."""
    config = dict(config)
    if "_use_default_values" in config:
        config["_use_default_values"] = sorted(config["_use_default_values"])
    return config


sources, written = [], []
for name, fields in SOURCES:
    source_class = getattr(diffusers, name)
    source = source_class.from_config(dict(fields, _class_name=name, _diffusers_version="0.30.0"))
    entry = {"source": plain(source.config), "made": {}, "back": {}}
    for target in TARGETS:
        try:
            made = getattr(diffusers, target).from_config(source.config)
        except (ValueError, NotImplementedError) as error:
            print(f"{name} to {target}: {error}")
            continue
        entry["made"][target] = plain(made.config)
        if name in TARGETS and fields:
            entry["back"][target] = plain(source_class.from_config(made.config).config)
    sources.append(entry)
    if name in TARGETS:
        written.append({"class": name, "fields": fields, "text": source.to_json_string()})

answer = json.dumps({"sources": sources, "written": written}, separators=(",", ":"))
(fixture.folder() / "from_config.json").write_text(answer.replace('{"source"', '\n{"source"').replace('{"class"', '\n{"class"') + "\n")
print(f"{len(sources)} configs, {len(answer) / 1e3:.0f} kB")
