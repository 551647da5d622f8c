"""Pictures that diffusers paints with small checkpoints in the original layout, whose vocabulary is the real one of CLIP.

The checkpoints themselves are too large to keep. Their names and shapes are (`<case>.txt.gz`), and their values follow from
the names by a rule (`values`) that the tests have as well (`original_checkpoint.rs` of the test support). The models are made by the reference's own
converters of single files; configs and schedulers are those of the published models of the family, as far as the sizes allow.
"""

import gzip
import json
import pathlib
import sys
import tempfile
import zlib

import fixture
import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders import single_file_utils as reference
from original_names import clip_names, open_clip_names, renamed, unet_modules, vae_modules
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

HERE = fixture.folder()
MERGES = HERE.parents[3] / "convert/assets/bpe_simple_vocab_16e6.txt.gz"
PROMPT, NEGATIVE_PROMPT = "a lighthouse at dusk, oil painting", "blurry"
SCHEDULE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", set_alpha_to_one=False, steps_offset=1)


def values(name, shape):
    """Float32 values that follow from the name, and that float16 has as well: multiples of powers of two."""
    bits = np.arange(int(np.prod(shape)), dtype=np.uint64) * np.uint64(0x9E3779B1) + np.uint64(zlib.crc32(name.encode()))
    bits = bits.astype(np.uint32)
    bits = (bits ^ (bits >> np.uint32(15))) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    numbers = ((bits ^ (bits >> np.uint32(16))) >> np.uint32(21)).astype(np.float32) - np.float32(1024)
    if len(shape) > 1:
        fan_in = int(np.prod(shape[1:]))
        numbers *= np.float32(2.0 ** -(9 + fan_in.bit_length() // 2))
    elif len(shape) == 1 and name.endswith(".weight"):
        numbers = 1 + np.floor(numbers / 16) * np.float32(2.0**-10)
    else:
        numbers *= np.float32(2.0**-14)
    return torch.from_numpy(numbers.astype(np.float32)).reshape(shape)


def tokenizer(pad_token):
    """CLIP's, from OpenAI's list of merges (openai/CLIP, simple_tokenizer.py)."""
    merges = gzip.decompress(MERGES.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    codes = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    characters = [chr(code) for code in codes] + [chr(256 + i) for i in range(256 - len(codes))]
    tokens = characters + [c + "</w>" for c in characters] + [m.replace(" ", "") for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
        (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77, "pad_token": pad_token, "tokenizer_class": "CLIPTokenizer"}))
        return CLIPTokenizer.from_pretrained(folder)


class Checkpoint:
    """A checkpoint under construction: names and shapes, and the values of those that models have."""

    def __init__(self, case):
        self.case, self.shapes, self.tensors = case, {}, {}

    def add(self, prefix, names):
        added = {}
        for name, shape in names.items():
            self.shapes[prefix + name] = [1, 77] if shape is None else shape
            if shape is not None:
                added[prefix + name] = values(prefix + name, shape)
        self.tensors |= added
        return added

    def unet(self, **config):
        model = UNet2DConditionModel(**config)
        original = self.add("model.diffusion_model.", renamed(model, unet_modules(model)))
        model.load_state_dict(reference.convert_ldm_unet_checkpoint(original, dict(model.config)))
        return model.eval()

    def vae(self, **config):
        model = AutoencoderKL(**config)
        original = self.add("first_stage_model.", renamed(model, vae_modules(model)))
        model.load_state_dict(reference.convert_ldm_vae_checkpoint(original, dict(model.config)))
        return model.eval()

    def clip(self, prefix, **config):
        model = CLIPTextModel(CLIPTextConfig(**config))
        converted = reference.convert_ldm_clip_checkpoint(self.add(prefix, clip_names(model.config)))
        self.load_text(model, converted)
        return model.eval()

    def open_clip(self, prefix, layers, **config):
        model = CLIPTextModel(CLIPTextConfig(**config))
        original = self.add(prefix, open_clip_names(model.config, layers))
        self.load_text(model, reference.convert_open_clip_checkpoint(model, original, prefix))
        return model.eval()

    @staticmethod
    def load_text(model, converted):
        """Older names have `text_model.` before them, which transformers 5 does not have."""
        expected = model.state_dict()
        converted = {name if name in expected else name.removeprefix("text_model."): tensor for name, tensor in converted.items()}
        converted = {name: tensor for name, tensor in converted.items() if name in expected}
        model.load_state_dict(converted)

    def write(self):
        lines = "".join(f"original {name} {','.join(map(str, shape)) or '-'}\n" for name, shape in self.shapes.items())
        (HERE / f"{self.case}.txt.gz").write_bytes(gzip.compress(lines.encode(), 9, mtime=0))


VAE = dict(block_out_channels=(32, 32, 64), layers_per_block=1, down_block_types=("DownEncoderBlock2D",) * 3,
           up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=4, norm_num_groups=32, sample_size=512, scaling_factor=0.18215)
UNET = dict(down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1, cross_attention_dim=64)
# The ids are not those of the tokens: with 2 transformers looks for the highest id, as with all published configs.
CLIP = dict(hidden_size=64, intermediate_size=96, num_attention_heads=1, vocab_size=49408, bos_token_id=0, eos_token_id=2, pad_token_id=1)


def sd1():
    checkpoint = Checkpoint("sd1")
    unet = checkpoint.unet(**UNET, block_out_channels=(32, 64), attention_head_dim=8, sample_size=64)
    vae = checkpoint.vae(**VAE)
    text_encoder = checkpoint.clip("cond_stage_model.transformer.", **CLIP, num_hidden_layers=3, hidden_act="quick_gelu")
    checkpoint.add("", {"betas": [1000], "alphas_cumprod": [1000], "model_ema.decay": [], "model_ema.num_updates": []})
    checkpoint.write()
    scheduler = PNDMScheduler(**SCHEDULE, skip_prk_steps=True)
    return pipeline(unet, vae, text_encoder, tokenizer("<|endoftext|>"), scheduler)


def sd2(prediction_type):
    checkpoint = Checkpoint("sd2")
    is_v = prediction_type == "v_prediction"
    unet = checkpoint.unet(**UNET, block_out_channels=(64, 128), attention_head_dim=[1, 2], use_linear_projection=True,
                           sample_size=96 if is_v else 64, upcast_attention=is_v)
    vae = checkpoint.vae(**VAE)
    text_encoder = checkpoint.open_clip("cond_stage_model.model.", 3, **CLIP, num_hidden_layers=3, hidden_act="gelu")
    checkpoint.add("", {"betas": [1000], "alphas_cumprod": [1000]})
    checkpoint.write()
    scheduler = DDIMScheduler(**SCHEDULE, prediction_type="v_prediction", clip_sample=False) if is_v else PNDMScheduler(**SCHEDULE, skip_prk_steps=True)
    return pipeline(unet, vae, text_encoder, tokenizer("!"), scheduler)


def pipeline(unet, vae, text_encoder, tokenizer, scheduler):
    made = StableDiffusionPipeline(unet=unet, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler,
                                   safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


def paint(made, name):
    run = lambda kind: made(PROMPT, negative_prompt=NEGATIVE_PROMPT, num_inference_steps=4, guidance_scale=5.0, height=64, width=64,
                            generator=torch.Generator().manual_seed(42), output_type=kind).images
    return {f"{name}.latents": run("latent"), f"{name}.picture": torch.from_numpy(np.array(run("pil")[0]))}


if len(sys.argv) > 1:
    # `export.py sd1=FOLDER sd2=FOLDER`: folders that `diffuse convert` made of the checkpoints paint the same pictures in the reference.
    import safetensors.torch

    expected = safetensors.torch.load_file(HERE / "single_file.safetensors")
    for name, folder in (argument.split("=") for argument in sys.argv[1:]):
        made = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
        made.set_progress_bar_config(disable=True)
        for key, tensor in paint(made, name).items():
            print(key, "differs by at most", float((tensor.float() - expected[key].float()).abs().max()))
else:
    fixture.save(paint(sd1(), "sd1") | paint(sd2("v_prediction"), "sd2") | paint(sd2("epsilon"), "sd2_epsilon"))
