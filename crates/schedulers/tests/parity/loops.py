"""What the export.py of every scheduler uses: whole denoising loops of the reference, with a model that is plain arithmetic.

The model's output is a quarter of its input plus a tensor from a small bank, in float32 (or the case's dtype): exact enough to be
the same everywhere, and dependent on the sample, so that a mistake in one step shows in all later ones."""

import contextlib
import json
import warnings

import numpy as np
import torch

import fixture

warnings.filterwarnings("ignore")
SHAPE = (2, 3, 2, 3)
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "f64": torch.float64}
generator = torch.Generator().manual_seed(1234)
# Twice the channels, for schedulers that take a variance from the model.
BANK = torch.randn((5, 2, 6, 2, 3), generator=generator)
START = torch.randn(SHAPE, generator=generator)


def model(scaled_sample, position, channels):
    return scaled_sample.repeat(1, channels // SHAPE[1], 1, 1) * 0.25 + BANK[position % 5][:, :channels].to(scaled_sample.dtype)


def recorded(count):
    """The steps whose result is kept."""
    return sorted({0, 1, 2, count // 2, count - 2, count - 1} & set(range(count)))


@contextlib.contextmanager
def nearest_square_roots():
    """Square roots of float32 as IEEE 754 has them. torch takes those of MKL, which on some processors are one unit in the last
    place off in every fifth number; where a formula cancels, as with zero terminal SNR, that shows in the fourth digit."""
    power, sqrt, method = torch.Tensor.__pow__, torch.sqrt, torch.Tensor.sqrt

    def nearest(tensor):
        if tensor.dtype != torch.float32:
            return method(tensor)
        return torch.from_numpy(np.sqrt(tensor.numpy().reshape(-1))).reshape(tensor.shape)

    torch.Tensor.__pow__ = lambda tensor, exponent: nearest(tensor) if exponent == 0.5 else power(tensor, exponent)
    torch.sqrt = torch.Tensor.sqrt = nearest
    try:
        yield
    finally:
        torch.Tensor.__pow__, torch.sqrt, torch.Tensor.sqrt = power, sqrt, method


def run(scheduler_class, case):
    """The reference's answer to one case: a dict of tensors."""
    with nearest_square_roots() if case.get("nearest_square_roots") else contextlib.nullcontext():
        return _run(scheduler_class, case)


def _run(scheduler_class, case):
    scheduler = scheduler_class.from_config(dict(case.get("config", {}), _class_name=scheduler_class.__name__))
    dtype = DTYPES[case.get("dtype", "f32")]
    answer = {}
    if case.get("train"):
        timesteps = torch.tensor(case["train"], dtype=scheduler.timesteps.dtype if scheduler.timesteps is not None else torch.int64)
        answer["train/add_noise"] = scheduler.add_noise(START.to(dtype), BANK[1][:, :3].to(dtype), timesteps)
        if hasattr(scheduler, "get_velocity"):
            answer["train/velocity"] = scheduler.get_velocity(START.to(dtype), BANK[1][:, :3].to(dtype), timesteps)
    if "timesteps" in case:
        scheduler.set_timesteps(timesteps=case["timesteps"])
    elif "sigmas" in case:
        scheduler.set_timesteps(sigmas=case["sigmas"])
    elif "mu" in case:
        scheduler.set_timesteps(case["steps"], mu=case["mu"])
    else:
        scheduler.set_timesteps(case["steps"])
    timesteps = scheduler.timesteps
    answer["timesteps"] = timesteps.to(torch.float64)
    answer["init_noise_sigma"] = torch.as_tensor(float(scheduler.init_noise_sigma), dtype=torch.float64)
    if hasattr(scheduler, "sigmas"):
        answer["sigmas"] = scheduler.sigmas.to(torch.float32)
    begin = case.get("begin", 0)
    if begin and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    at = timesteps[begin : begin + 1].repeat(2)
    answer["add_noise"] = scheduler.add_noise(START.to(dtype), BANK[0][:, :3].to(dtype), at)
    if begin:
        sample = answer["add_noise"]
    else:
        sample = START.to(dtype) * float(scheduler.init_noise_sigma)
        sample = sample.to(dtype)
    noise = torch.Generator().manual_seed(case.get("seed", 0))
    arguments = dict(case.get("options", {}))
    if case.get("variance_noise"):
        arguments["variance_noise"] = BANK[2][:, :3].to(dtype)
    elif scheduler_class.__name__ != "PNDMScheduler":
        arguments["generator"] = noise
    loop = timesteps[begin:]
    samples, last = [], None
    for position, timestep in enumerate(loop):
        scaled = scheduler.scale_model_input(sample, timestep)
        output = model(scaled, position, case.get("channels", 3))
        last = scheduler.step(output, timestep, sample, **arguments)
        sample = last.prev_sample
        if position in recorded(len(loop)):
            samples.append(sample)
    answer["samples"] = torch.stack(samples)
    if getattr(last, "pred_original_sample", None) is not None:
        answer["pred_original_sample"] = last.pred_original_sample
    return answer


def is_ill_conditioned(case):
    """Whether the last training timesteps have almost no signal, so that the reference's own rounding shows."""
    config = case.get("config", {})
    no_signal = config.get("rescale_betas_zero_snr") or config.get("beta_schedule") == "squaredcos_cap_v2"
    return bool(no_signal) and case.get("dtype", "f32") == "f32"


def crashes(scheduler_class, case):
    """Whether the reference runs past its sigmas: its loops do when the first two timesteps are equal."""
    try:
        run(scheduler_class, case)
    except IndexError:
        print(f"the reference cannot run {case}")
        return True
    return False


def export(scheduler_class, cases):
    """Runs all cases and writes <folder>.safetensors and cases.json."""
    tensors = {"bank": BANK, "start": START}
    cases = [case for case in cases if not (case.pop("may_crash", False) and crashes(scheduler_class, case))]
    # With the reference as it is they get a wide bound, with nearest square roots the usual one.
    cases += [case | {"nearest_square_roots": True} for case in cases if is_ill_conditioned(case)]
    for index, case in enumerate(cases):
        try:
            answer = run(scheduler_class, case)
        except Exception as error:
            raise RuntimeError(f"case {index}: {case}") from error
        if not torch.isfinite(answer["samples"]).all() and not case.get("not_finite"):
            print(f"case {index} is not finite: {case}")
        for name, tensor in answer.items():
            tensors[f"{index}/{name}"] = tensor
    fixture.save(tensors)
    lines = ",\n".join(json.dumps(case) for case in cases)
    (fixture.folder() / "cases.json").write_text(f"[\n{lines}\n]\n")
