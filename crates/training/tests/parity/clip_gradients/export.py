"""torch.nn.utils.clip_grad_norm_: gradients that are clipped, that are not, and that are not finite."""

import torch

import fixture

generator = torch.Generator().manual_seed(0)
tensors = {f"gradient/{index}": torch.randn(shape, generator=generator) for index, shape in enumerate([(50, 40), (3,)])}
for case, max_norm, factor in [
    ("clipped", 1.0, 1.0),
    ("tight", 0.01, 1.0),
    ("kept", 100.0, 1.0),
    ("zero", 1.0, 0.0),
    ("infinite", 1.0, float("inf")),
    ("nan", 1.0, float("nan")),
]:
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in [(50, 40), (3,)]]
    for index, parameter in enumerate(parameters):
        parameter.grad = tensors[f"gradient/{index}"].clone()
    parameters[1].grad *= factor
    if case == "zero":
        parameters[0].grad *= 0
    for index, parameter in enumerate(parameters):
        tensors[f"{case}/before/{index}"] = parameter.grad.clone()
    tensors[f"{case}/max_norm"] = max_norm
    tensors[f"{case}/norm"] = torch.nn.utils.clip_grad_norm_(parameters, max_norm, foreach=False)
    for index, parameter in enumerate(parameters):
        tensors[f"{case}/after/{index}"] = parameter.grad.clone()
fixture.save({name: value for name, value in tensors.items() if not name.startswith("gradient")})
