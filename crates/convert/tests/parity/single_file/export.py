"""Names and shapes of checkpoints of every family in the original layout, and what the reference makes of them.

Each case is a text file of lines `original NAME SHAPE` and `diffusers FOLDER/NAME SHAPE CRC`. Real sizes are made on torch's meta
device, so that they have no values (`-` for the checksum). The tensors of small ones are filled with bytes that follow from
their names (`values`), so that the test makes the same; the checksum is that of the tensor which the reference's converters give.
That the names in the original layout are right is what those converters prove: they give exactly the names of the model.
"""

import gzip
import zlib

import fixture
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from diffusers.loaders import single_file_utils as reference
from original_names import clip_names, controlnet_modules, open_clip_names, renamed, unet_modules, vae_modules
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

HERE = fixture.folder()


def values(name, shape, meta):
    """A float16 tensor of finite values that follow from its name; the test has the same rule."""
    if meta:
        return torch.empty(shape, dtype=torch.float16, device="meta")
    seed = zlib.crc32(name.encode())
    count = torch.Size(shape).numel()
    # 0x0000 to 0x77ff are finite.
    words = (torch.arange(count, dtype=torch.int64) * 40503 + seed) % 0x7800
    return words.to(torch.int16).view(torch.float16).reshape(shape)


class Case:
    def __init__(self, name, real):
        self.name, self.meta = name, real
        self.original, self.lines = {}, []

    def add(self, prefix, names):
        added = {}
        for name, shape in names.items():
            value = torch.zeros(1, 77, dtype=torch.int64) if shape is None else values(prefix + name, shape, self.meta)
            added[prefix + name] = value
            if shape is None:
                del added[prefix + name]
            self.lines.append(f"original {prefix}{name} {'1,77' if shape is None else ','.join(map(str, shape)) or '-'}")
        self.original |= added
        return added

    def expect(self, folder, model, converted):
        """Fails unless the reference's converter gives exactly the tensors of the model."""
        expected = {name.removeprefix("text_model."): list(t.shape) for name, t in model.state_dict().items()}
        found = {name.removeprefix("text_model."): list(t.shape) for name, t in converted.items()}
        assert found == expected, (self.name, folder, set(found) ^ set(expected))
        for name, tensor in sorted(converted.items()):
            crc = "-" if self.meta else zlib.crc32(tensor.contiguous().view(torch.int16).numpy().tobytes())
            self.lines.append(f"diffusers {folder}/{name} {','.join(map(str, tensor.shape))} {crc}")

    def unet(self, folder="unet", **config):
        with torch.device("meta"):
            model = UNet2DConditionModel(**config)
        original = self.add("model.diffusion_model.", renamed(model, unet_modules(model)))
        self.expect(folder, model, reference.convert_ldm_unet_checkpoint(original, dict(model.config)))

    def controlnet(self, **config):
        with torch.device("meta"):
            model = ControlNetModel(**config)
        original = self.add("control_model.", renamed(model, controlnet_modules(model)))
        converted = reference.convert_controlnet_checkpoint(original, dict(model.config))
        # The converter has no rows for these (its issue: SDXL's ControlNets were published in diffusers' layout).
        for a, b in [("label_emb.0.0", "add_embedding.linear_1"), ("label_emb.0.2", "add_embedding.linear_2")]:
            for part in ("weight", "bias"):
                if f"control_model.{a}.{part}" in original:
                    converted[f"{b}.{part}"] = original[f"control_model.{a}.{part}"]
        self.expect("", model, converted)

    def vae(self, prefix="first_stage_model.", folder="vae", **config):
        with torch.device("meta"):
            model = AutoencoderKL(**config)
        original = self.add(prefix, renamed(model, vae_modules(model)))
        self.expect(folder, model, reference.convert_ldm_vae_checkpoint(original, dict(model.config)))

    def clip(self, prefix, **config):
        config = CLIPTextConfig(**config)
        with torch.device("meta"):
            model = CLIPTextModel(config)
            names = clip_names(config)
        original = self.add(prefix, names)
        # The converter knows text encoders within checkpoints only.
        within = {f"cond_stage_model.transformer.{name.removeprefix(prefix)}": value for name, value in original.items()}
        self.expect("text_encoder" if prefix else "", model, reference.convert_ldm_clip_checkpoint(within))

    def open_clip(self, prefix, folder, layers, projection, **config):
        config = CLIPTextConfig(**config)
        with torch.device("meta"):
            model = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)
        original = self.add(prefix, open_clip_names(config, layers))
        if not projection:
            # Ignored by the reference where there is no place for it.
            original.pop(prefix + "text_projection")
        self.expect(folder, model, reference.convert_open_clip_checkpoint(model, original, prefix))

    def bookkeeping(self, names):
        self.lines.extend(f"original {name} {shape}" for name, shape in names.items())

    def write(self):
        path = HERE / f"{self.name}.txt.gz"
        # No time in it, so that the same lines give the same file.
        path.write_bytes(gzip.compress("".join(line + "\n" for line in self.lines).encode(), 9, mtime=0))
        print(f"{path.name}: {len(self.lines)} lines, {path.stat().st_size / 1e3:.0f} kB")


CROSS = dict(down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3)
XL_BLOCKS = dict(down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                 up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True,
                 addition_embed_type="text_time")
REFINER_BLOCKS = dict(down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
                      up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True,
                      addition_embed_type="text_time")
VAE = dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
CLIP_L = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=49408, projection_dim=768)
CLIP_H = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, vocab_size=49408, projection_dim=1024)
CLIP_G = dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, vocab_size=49408, projection_dim=1280)

SMALL_VAE = dict(block_out_channels=(32, 64), layers_per_block=1, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
SMALL_CLIP = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=2, vocab_size=120, projection_dim=64)
SMALL_CLIP_2 = dict(hidden_size=96, intermediate_size=128, num_hidden_layers=4, num_attention_heads=2, vocab_size=120, projection_dim=32)

SCHEDULE = {"betas": "1000", "alphas_cumprod": "1000", "sqrt_one_minus_alphas_cumprod": "1000", "posterior_mean_coef1": "1000",
            "log_one_minus_alphas_cumprod": "1000", "model_ema.decay": "-", "model_ema.num_updates": "-"}


def sd1(name, real, unet, vae, clip):
    case = Case(name, real)
    case.unet(**unet)
    case.vae(**vae)
    case.clip("cond_stage_model.transformer.", **clip)
    case.bookkeeping(SCHEDULE)
    case.write()


def sd2(name, real, unet, vae, clip, layers):
    case = Case(name, real)
    case.unet(**unet)
    case.vae(**vae)
    case.open_clip("cond_stage_model.model.", "text_encoder", layers, False, **clip)
    case.bookkeeping(SCHEDULE)
    case.write()


def sdxl(name, real, unet, vae, clip, clip_2):
    case = Case(name, real)
    case.unet(**unet)
    case.vae(**vae)
    case.clip("conditioner.embedders.0.transformer.", **clip)
    case.open_clip("conditioner.embedders.1.model.", "text_encoder_2", clip_2["num_hidden_layers"], True, **clip_2)
    case.bookkeeping({"denoiser.sigmas": "1000"})
    case.write()


def refiner(name, real, unet, vae, clip_2):
    case = Case(name, real)
    case.unet(**unet)
    case.vae(**vae)
    case.open_clip("conditioner.embedders.0.model.", "text_encoder_2", clip_2["num_hidden_layers"], True, **clip_2)
    case.bookkeeping({"denoiser.sigmas": "1000"})
    case.write()


def controlnet(name, real, **config):
    case = Case(name, real)
    case.controlnet(**config)
    case.write()


def alone(name, real, add):
    case = Case(name, real)
    add(case)
    case.write()


SD1 = dict(**CROSS, cross_attention_dim=768)
SD2 = dict(**CROSS, cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True)
SDXL = dict(**XL_BLOCKS, block_out_channels=(320, 640, 1280), cross_attention_dim=2048, attention_head_dim=[5, 10, 20],
            transformer_layers_per_block=[1, 2, 10], addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816)
REFINER = dict(**REFINER_BLOCKS, block_out_channels=(384, 768, 1536, 1536), cross_attention_dim=1280, attention_head_dim=[6, 12, 24, 24],
               transformer_layers_per_block=4, addition_time_embed_dim=256, projection_class_embeddings_input_dim=2560)
sd1("sd15", True, SD1, VAE, CLIP_L)
sd1("sd15_inpainting", True, SD1 | dict(in_channels=9), VAE, CLIP_L)
sd1("instruct_pix2pix", True, SD1 | dict(in_channels=8), VAE, CLIP_L)
sd2("sd21", True, SD2, VAE, CLIP_H, 24)
sd2("sd2_inpainting", True, SD2 | dict(in_channels=9), VAE, CLIP_H, 24)
sdxl("sdxl_base", True, SDXL, VAE, CLIP_L, CLIP_G)
sdxl("sdxl_inpainting", True, SDXL | dict(in_channels=9), VAE, CLIP_L, CLIP_G)
refiner("sdxl_refiner", True, REFINER, VAE, CLIP_G)
controlnet("controlnet_sd15", True, cross_attention_dim=768)
controlnet("controlnet_sdxl", True, **{k: v for k, v in SDXL.items() if k != "up_block_types"})

# Small, and each of another structure than the published models.
TWO = dict(down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
SMALL1 = dict(**TWO, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=64)
SMALL2 = dict(**TWO, block_out_channels=(32, 64), layers_per_block=2, cross_attention_dim=96, use_linear_projection=True)
SMALLXL = dict(**XL_BLOCKS, block_out_channels=(32, 64, 64), layers_per_block=1, cross_attention_dim=160, transformer_layers_per_block=[1, 2, 3],
               addition_time_embed_dim=8, projection_class_embeddings_input_dim=32 + 6 * 8)
SMALLREFINER = dict(**REFINER_BLOCKS, block_out_channels=(32, 32, 64, 64), layers_per_block=1, cross_attention_dim=96, transformer_layers_per_block=2,
                    addition_time_embed_dim=8, projection_class_embeddings_input_dim=32 + 5 * 8)
sd1("small_sd1", False, SMALL1, SMALL_VAE, SMALL_CLIP)
sd1("small_inpainting", False, SMALL1 | dict(in_channels=9), SMALL_VAE, SMALL_CLIP)
sd2("small_sd2", False, SMALL2, SMALL_VAE, SMALL_CLIP_2, 4)
sdxl("small_sdxl", False, SMALLXL, SMALL_VAE, SMALL_CLIP, SMALL_CLIP_2)
refiner("small_refiner", False, SMALLREFINER, SMALL_VAE, SMALL_CLIP_2)
controlnet("small_controlnet", False, down_block_types=TWO["down_block_types"], block_out_channels=(32, 64), layers_per_block=1,
           cross_attention_dim=64, conditioning_embedding_out_channels=(16, 16, 32, 32))
for name, real, config in (("vae", True, VAE), ("small_vae", False, SMALL_VAE)):
    alone(name, real, lambda case: case.vae("", "", **config))
for name, real, config in (("clip_l", True, CLIP_L), ("small_clip", False, SMALL_CLIP)):
    alone(name, real, lambda case: case.clip("", **config))
for name, real, config in (("clip_g", True, CLIP_G), ("small_open_clip", False, SMALL_CLIP_2)):
    alone(name, real, lambda case: case.open_clip("", "", config["num_hidden_layers"], True, **config))
for name, real, config in (("unet_sd15", True, SD1), ("small_unet", False, SMALL2)):
    alone(name, real, lambda case: case.unet("", **config))
