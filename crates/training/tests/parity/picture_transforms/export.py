"""torchvision's transforms as diffusers' training scripts compose them, on pictures of several shapes."""

import json

import numpy
import torch
from PIL import Image
from torchvision import transforms

import fixture

FILTERS = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC, "lanczos": Image.LANCZOS}
SIZES = [(50, 37), (37, 50), (40, 40), (16, 16), (11, 30), (16, 21)]
CASES = [
    {"filter": "bilinear", "center_crop": True, "flip": False},
    {"filter": "bilinear", "center_crop": False, "flip": False},
    {"filter": "lanczos", "center_crop": False, "flip": True},
    {"filter": "bicubic", "center_crop": True, "flip": True},
]
RESOLUTION = 16

generator = numpy.random.default_rng(0)
tensors = {}
for width, height in SIZES:
    # Some order in the noise, so that an upside-down or mirrored picture shows.
    pixels = generator.integers(0, 128, (height, width, 3)) + numpy.arange(width)[None, :, None] + numpy.arange(height)[:, None, None]
    pixels = pixels.astype(numpy.uint8)
    tensors[f"{width}x{height}"] = torch.from_numpy(pixels)
    for index, case in enumerate(CASES):
        transform = transforms.Compose(
            [
                transforms.Resize(RESOLUTION, interpolation=getattr(transforms.InterpolationMode, case["filter"].upper())),
                transforms.CenterCrop(RESOLUTION) if case["center_crop"] else transforms.RandomCrop(RESOLUTION),
                transforms.RandomHorizontalFlip() if case["flip"] else transforms.Lambda(lambda picture: picture),
                transforms.ToTensor(),
                transforms.Normalize([0.5], [0.5]),
            ]
        )
        # Two pictures in a row, so that too few or too many random numbers show.
        torch.manual_seed(index)
        for turn in range(2):
            tensors[f"{width}x{height}/{index}/{turn}"] = transform(Image.fromarray(pixels))
fixture.save(tensors)
settings = {"sizes": SIZES, "cases": CASES, "resolution": RESOLUTION}
(fixture.folder() / "cases.json").write_text(json.dumps(settings, indent=1) + "\n")
