"""The masked loss of cloneofsimo's lora and its gradient: masks as lora_diffusion/dataset.py (PivotalTuningDatasetCapation) makes them of pictures, the loss by loss_step of
lora_diffusion/cli_lora_pti.py."""

import json

import numpy
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import transforms

import fixture

torch.set_grad_enabled(True)

SIZE = 32
SHAPE = (2, 4, SIZE // 8, SIZE // 8)
TEMPERATURES = [0.0, 0.5, 1.0, 2.5]

# Greys, some black, and white in the second one only: what is largest is so in the batch.
pictures = numpy.random.default_rng(0).integers(0, 200, (2, SIZE, SIZE)).astype(numpy.uint8)
pictures[:, 8:24, 0:12], pictures[1, :, 24:] = 0, 255
transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])
masks = torch.stack([transform(Image.fromarray(picture)) * 0.5 + 1.0 for picture in pictures])

generator = torch.Generator().manual_seed(1)
target = torch.randn(SHAPE, generator=generator)
# About as far off as a model is that has learned something.
prediction = target + 0.3 * torch.randn(SHAPE, generator=generator)
tensors = {"pictures": torch.from_numpy(pictures), "masks": masks, "prediction": prediction, "target": target}
for index, temperature in enumerate(TEMPERATURES):
    model_pred = prediction.clone().requires_grad_()
    mask = masks.reshape(SHAPE[0], 1, SHAPE[2] * 8, SHAPE[3] * 8)
    mask = F.interpolate(mask.float(), size=SHAPE[-2:], mode="nearest")
    mask = (mask + 0.01).pow(temperature)
    mask = mask / mask.max()
    loss = F.mse_loss((model_pred * mask).float(), (target * mask).float(), reduction="none").mean([1, 2, 3]).mean()
    loss.backward()
    tensors |= {f"{index}/weights": mask, f"{index}/loss": loss, f"{index}/gradient": model_pred.grad}
fixture.save(tensors)
settings = {"temperatures": TEMPERATURES}
(fixture.folder() / "cases.json").write_text(json.dumps(settings, indent=1) + "\n")
