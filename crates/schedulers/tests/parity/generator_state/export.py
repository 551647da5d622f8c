"""The state of torch's CPU generator at several places, and what it draws from there."""

import torch

import fixture

BEFORE = {
    "fresh": lambda generator: None,
    "uniform": lambda generator: torch.rand(10, generator=generator),
    "all words": lambda generator: torch.rand(624, generator=generator),
    "second words": lambda generator: torch.rand(1000, generator=generator),
    "half a pair": lambda generator: torch.randn(3, generator=generator),
}

tensors = {}
for name, before in BEFORE.items():
    generator = torch.Generator().manual_seed(2**33 + 5)
    before(generator)
    tensors[f"{name}/state"] = generator.get_state()
    tensors[f"{name}/after"] = torch.randn(5, generator=generator, dtype=torch.float64)
fixture.save(tensors)
