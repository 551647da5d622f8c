"""Pictures through the transforms of cloneofsimo's lora (lora_diffusion/dataset.py, PivotalTuningDatasetCapation), up to where they become tensors."""

import json

import numpy
import torch
from PIL import Image
from torchvision import transforms

import fixture

# One that is only cut, and one that is resized before.
SIZES = [(24, 16), (33, 22)]
RESOLUTION = 16
# Of the last one pixels depend on the last bit of a factor: torch draws it by one multiply-add where the processor has such.
SEEDS = [0, 1, 2, 3, 6, 10456]

generator = numpy.random.default_rng(0)
transform = transforms.Compose(
    [
        transforms.Resize(RESOLUTION, interpolation=transforms.InterpolationMode.BILINEAR),
        transforms.ColorJitter(0.1, 0.1),
        transforms.CenterCrop(RESOLUTION),
    ]
)
tensors = {}
for width, height in SIZES:
    # Darker to the left and brighter to the right, where the crop takes it away after the contrast was measured; and some black and white.
    pixels = generator.integers(0, 160, (height, width, 3)) + numpy.linspace(0, 95, width).astype(int)[None, :, None] ** 2 // 95
    pixels[generator.random((height, width)) < 0.1] = 0
    pixels[generator.random((height, width)) < 0.1] = 255
    pixels = pixels.astype(numpy.uint8)
    tensors[f"{width}x{height}"] = torch.from_numpy(pixels)
    for seed in SEEDS:
        # Two pictures in a row, so that too few or too many random numbers show.
        torch.manual_seed(seed)
        for turn in range(2):
            tensors[f"{width}x{height}/{seed}/{turn}"] = torch.from_numpy(numpy.array(transform(Image.fromarray(pixels))))

begins, ups = set(), set()
for seed in SEEDS:
    torch.manual_seed(seed)
    for turn in range(2):
        order, brightness, contrast, _, _ = transforms.ColorJitter.get_params((0.9, 1.1), (0.9, 1.1), None, None)
        begins.add(next(which for which in order.tolist() if which < 2))
        ups.add((brightness > 1.0, contrast > 1.0))
assert len(begins) == 2 and len(ups) == 4, "both orders and all directions come"
fixture.save(tensors)
settings = {"sizes": SIZES, "resolution": RESOLUTION, "seeds": SEEDS}
(fixture.folder() / "cases.json").write_text(json.dumps(settings, indent=1) + "\n")
