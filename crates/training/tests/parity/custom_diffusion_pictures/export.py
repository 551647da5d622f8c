"""Pictures at random sizes and the latents that count, by the steps of `CustomDiffusionDataset` (`__getitem__` and `preprocess`) of diffusers'
examples/custom_diffusion/train_custom_diffusion.py, with torch's random numbers in place of numpy's."""

import json

import numpy
import torch
from PIL import Image

import fixture

CAPTION = "a thing"
# A latent is 2 pixels wide.
SIZE, MASK_SIZE = 24, 12
# Smaller ones, one that is just as large, and larger ones; some of them mirrored.
SEEDS = [0, 1, 2, 3, 9, 28]
# Masks alone, of a usual VAE's latents: how large the picture is, and where its top and its left are.
LARGE_SIZE, LARGE_MASK_SIZE = 256, 32
LARGE_PLACES = [(85, 0, 171), (96, 37, 8), (153, 103, 50), (200, 7, 49), (255, 1, 0), (256, 0, 0), (257, 1, 0), (358, 20, 102)]


def randint(low, high):
    return torch.randint(low, high, (1,)).item()


def drawn():
    """Whether a picture is mirrored, how large it is, where its top and its left are, and its caption."""
    flips = torch.rand(1).item() < 0.5
    smaller = torch.rand(1).item() < 0.66
    scale = randint(SIZE // 3, SIZE + 1) if smaller else randint(int(1.2 * SIZE), int(1.4 * SIZE))
    room = abs(scale - SIZE)
    top, left = randint(0, room + 1), randint(0, room + 1)
    words = [""]
    if scale < 0.6 * SIZE:
        words = ["a far away ", "very small "]
    elif scale > SIZE:
        words = ["zoomed in ", "close up "]
    caption = (words[randint(0, 2)] if len(words) > 1 else "") + CAPTION
    return flips, scale, top, left, caption


def pixel_values(picture, scale, top, left):
    """All of the picture on a canvas of zeros, or a part of it."""
    pixels = numpy.array(picture.resize((scale, scale), resample=Image.BILINEAR)).astype(numpy.uint8)
    values = (pixels / 127.5 - 1.0).astype(numpy.float32)
    if scale > SIZE:
        shown = values[top : top + SIZE, left : left + SIZE]
    else:
        shown = numpy.zeros((SIZE, SIZE, 3), dtype=numpy.float32)
        shown[top : top + scale, left : left + scale] = values
    return torch.from_numpy(shown).permute(2, 0, 1)


def mask(size, mask_size, scale, top, left):
    """1 for the latents that count; what the script weighs the loss by, divided by their sum."""
    factor = size // mask_size
    if scale > size:
        return torch.ones((1, mask_size, mask_size), dtype=torch.uint8)
    counts = torch.zeros((1, mask_size, mask_size), dtype=torch.uint8)
    counts[:, top // factor + 1 : (top + scale) // factor - 1, left // factor + 1 : (left + scale) // factor - 1] = 1
    assert counts.any(), "the script divides by zero"
    return counts


pixels = numpy.random.default_rng(0).integers(0, 128, (14, 20, 3)) + 6 * numpy.arange(20)[None, :, None]
pixels[:3, :5], pixels[-2:, -4:] = 0, 255
picture = Image.fromarray(pixels.astype(numpy.uint8))
tensors = {"picture": torch.from_numpy(numpy.array(picture))}
places, captions, values = [], [], []
for seed in SEEDS:
    torch.manual_seed(seed)
    flips, scale, top, left, caption = drawn()
    places.append((scale, top, left))
    captions.append(caption)
    values.append(pixel_values(picture.transpose(Image.FLIP_LEFT_RIGHT) if flips else picture, scale, top, left))
tensors["pixel_values"] = torch.stack(values)
for size, mask_size, placed in [(SIZE, MASK_SIZE, places), (LARGE_SIZE, LARGE_MASK_SIZE, LARGE_PLACES)]:
    tensors[f"{size}/places"] = torch.tensor(placed)
    tensors[f"{size}/masks"] = torch.stack([mask(size, mask_size, *place) for place in placed])
fixture.save(tensors)
settings = {"caption": CAPTION, "size": SIZE, "seeds": SEEDS, "captions": captions}
(fixture.folder() / "cases.json").write_text(json.dumps(settings, indent=1) + "\n")
