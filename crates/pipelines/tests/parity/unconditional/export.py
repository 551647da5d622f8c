"""Pictures without a text: the folders of tiny models, and the pictures that diffusers paints with them."""

import json
import shutil
import warnings

import diffusers
import fixture
import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel, VQModel
from diffusers.utils.torch_utils import randn_tensor

warnings.filterwarnings("ignore")
here = fixture.folder()


def unet(**changes):
    config = dict(
        sample_size=16, block_out_channels=[4, 8], norm_num_groups=2, layers_per_block=1, attention_head_dim=4,
        down_block_types=["DownBlock2D", "AttnDownBlock2D"], up_block_types=["AttnUpBlock2D", "UpBlock2D"],
    )  # fmt: skip
    return fixture.randomize(UNet2DModel(**(config | changes)), seed=2)


def save(name, pipeline):
    shutil.rmtree(here / name, ignore_errors=True)
    pipeline.save_pretrained(here / name)


save("ddpm", DDPMPipeline(unet(attention_head_dim=None, downsample_padding=0, freq_shift=1, norm_eps=1e-6), DDPMScheduler(variance_type="fixed_large")))
save("grey", DDPMPipeline(unet(in_channels=1, out_channels=1), DDPMScheduler(beta_schedule="squaredcos_cap_v2")))
save("ddim", DDIMPipeline(unet(), DDPMScheduler(prediction_type="v_prediction")))
save("classes", DDPMPipeline(unet(num_class_embeds=5), DDPMScheduler()))
vqvae = VQModel(
    block_out_channels=[4, 4], norm_num_groups=2, layers_per_block=1, num_vq_embeddings=30, sample_size=16,
    down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
)  # fmt: skip
schedule = dict(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False)
save("ldm", diffusers.LDMPipeline(fixture.randomize(vqvae, seed=3), unet(sample_size=8), DDIMScheduler(**schedule)))

tensors = {}
for name, case in json.loads((here / "cases.json").read_text()).items():
    pipeline_class = getattr(diffusers, case.get("pipeline", "DiffusionPipeline"))
    pipeline = pipeline_class.from_pretrained(here / case["model"])
    pipeline.set_progress_bar_config(disable=True)
    seeds = case.get("seeds", [0])
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    generator = generators if len(generators) > 1 else generators[0]
    batch_size = case.get("batch_size", 1)
    if "class_labels" in case:
        # No pipeline of the reference has class labels for this UNet: the loop of DDPMPipeline, with them.
        image = randn_tensor((batch_size, 3, 16, 16), generator=generator)
        pipeline.scheduler.set_timesteps(case["steps"])
        for timestep in pipeline.scheduler.timesteps:
            noise = pipeline.unet(image, timestep, class_labels=torch.tensor(case["class_labels"])).sample
            image = pipeline.scheduler.step(noise, timestep, image, generator=generator).prev_sample
        images = (image / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        images = pipeline.numpy_to_pil(images)
    else:
        kwargs = {key: case[key] for key in ("eta", "use_clipped_model_output") if key in case}
        images = pipeline(batch_size=batch_size, generator=generator, num_inference_steps=case["steps"], **kwargs).images
    print(name, type(pipeline).__name__, images[0].mode, images[0].size)
    tensors[name] = torch.from_numpy(np.stack([np.array(one.convert("RGB")) for one in images]))

fixture.save(tensors)
