"""What every export.py uses: fixed seeds, and writing a fixture beside the script."""

import pathlib
import sys

import safetensors.torch
import torch

torch.use_deterministic_algorithms(True, warn_only=True)
torch.manual_seed(0)
# The last bits of sums depend on it.
torch.set_num_threads(1)
torch.set_grad_enabled(False)


def folder():
    """The folder of the script that runs."""
    return pathlib.Path(sys.argv[0]).resolve().parent


def save(tensors, name=None):
    """Writes `tensors` (names to tensors or numbers) to <folder>/<folder's name>.safetensors."""
    path = folder() / f"{name or folder().name}.safetensors"
    tensors = {key: torch.as_tensor(value).detach().clone().contiguous() for key, value in tensors.items()}
    safetensors.torch.save_file(tensors, path)
    print(f"{path.name}: {len(tensors)} tensors, {path.stat().st_size / 1e3:.0f} kB")


def randomize(model, seed=0, scale=None):
    """Gives every parameter of `model` random values: fresh models have zeros and ones that would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
        spread = scale or (fan_in**-0.5 if parameter.dim() > 1 else 0.1)
        noise = torch.randn(parameter.shape, generator=generator) * spread
        is_norm_weight = parameter.dim() == 1 and name.endswith("weight")
        parameter.data.copy_(noise + 1.0 if is_norm_weight else noise)
    return model


def digest(values):
    """The length of all weights together, in float64."""
    return torch.cat([value.detach().flatten() for value in values]).double().norm().item()
