"""The reference's side of `cargo xtask parity --full` and `cargo xtask bench`.

    full_size.py make FOLDER             a full-size Stable Diffusion 1.5 folder with random weights
    full_size.py halve FOLDER TO         the same folder in float16
    full_size.py serve FOLDER THREADS    reads lines from standard input, answers each with a line of JSON

What can be asked, words separated by tabs: `unet OUTPUT`, `vae OUTPUT` (one run on the folder's inputs, written to OUTPUT; a third
word is the dtype, float32, float16 or bfloat16, that model and inputs are made before) and
`picture OUTPUT STEPS` (a whole picture, seed 0; a fourth word is the dtype of the models and of the folder's latents, which it then
begins with). Each answer has `seconds`, without loading, and `peak_bytes` of this process so far.
"""

import itertools
import json
import pathlib
import resource
import shutil
import sys
import time

import safetensors.torch
import torch

PROMPT = "abc def"
INPUTS = "inputs.safetensors"


def make(folder):
    import diffusers
    import transformers

    torch.manual_seed(0)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    # The values of stable-diffusion-v1-5's own config files; what is not named there is the class's default.
    unet = diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
    )
    text_encoder = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=49408,
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            projection_dim=768,
            bos_token_id=49406,
            eos_token_id=2,
            pad_token_id=1,
        )
    )
    scheduler = diffusers.PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    )
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer(partial / "vocabulary"),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(partial)
    shutil.rmtree(partial / "vocabulary")
    generator = torch.Generator().manual_seed(1)
    inputs = {
        "sample": torch.randn(2, 4, 64, 64, generator=generator),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(2, 77, 768, generator=generator),
        "latents": torch.randn(1, 4, 64, 64, generator=generator),
    }
    safetensors.torch.save_file(inputs, partial / INPUTS)
    partial.rename(folder)


def halve(folder, to):
    partial = to.with_name(to.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(folder, partial, ignore=shutil.ignore_patterns("*.safetensors"))
    for file in folder.glob("*/*.safetensors"):
        tensors = {name: tensor.half() for name, tensor in safetensors.torch.load_file(file).items()}
        safetensors.torch.save_file(tensors, partial / file.relative_to(folder), metadata={"format": "pt"})
    partial.rename(to)


def tokenizer(folder):
    """A CLIP tokenizer with the real one's 49408 entries, whose merges are made up: any pair of bytes in order."""
    import transformers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    size = 49408
    characters = list(bytes_to_unicode().values())
    alphabet = characters + [character + "</w>" for character in characters]
    specials = ["<|startoftext|>", "<|endoftext|>"]
    merges = list(itertools.islice(itertools.product(alphabet[:256], alphabet), size - len(alphabet) - len(specials)))
    tokens = alphabet + [left + right for left, right in merges] + specials
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges))
    return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=77)


class Reference:
    def __init__(self, folder):
        self.folder = folder
        self.inputs = safetensors.torch.load_file(folder / INPUTS)
        self.models = {}

    def model(self, name, dtype):
        """A component, loaded when it is first asked for."""
        import diffusers

        classes = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}
        if (name, dtype) not in self.models:
            model = classes[name].from_pretrained(self.folder / name, torch_dtype=dtype)
            self.models[name, dtype] = model.eval()
        return self.models[name, dtype]

    def unet(self, output, dtype="float32"):
        dtype = getattr(torch, dtype)
        unet = self.model("unet", dtype)
        inputs = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in self.inputs.items()}
        start = time.perf_counter()
        result = unet(inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"]).sample
        seconds = time.perf_counter() - start
        safetensors.torch.save_file({"output": result}, output)
        return seconds

    def vae(self, output, dtype="float32"):
        dtype = getattr(torch, dtype)
        vae, latents = self.model("vae", dtype), self.inputs["latents"].to(dtype)
        start = time.perf_counter()
        result = vae.decode(latents).sample
        seconds = time.perf_counter() - start
        safetensors.torch.save_file({"output": result}, output)
        return seconds

    def picture(self, output, steps, dtype=None):
        import diffusers

        torch_dtype = getattr(torch, dtype or "float32")
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(self.folder, torch_dtype=torch_dtype)
        pipeline.set_progress_bar_config(disable=True)
        start = time.perf_counter()
        # A seed draws other numbers in each dtype.
        latents = self.inputs["latents"].to(torch_dtype) if dtype else None
        generator = torch.Generator().manual_seed(0)
        picture = pipeline(PROMPT, num_inference_steps=int(steps), generator=generator, latents=latents).images[0]
        seconds = time.perf_counter() - start
        picture.save(output)
        return seconds


def quiet():
    """No notes and progress bars of loading among the figures."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def serve(folder, threads):
    quiet()
    torch.set_grad_enabled(False)
    torch.set_num_threads(threads)
    reference = Reference(folder)
    for line in sys.stdin:
        what, *arguments = line.rstrip("\n").split("\t")
        seconds = getattr(reference, what)(*arguments)
        # In kB on Linux, in bytes on macOS.
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        print(json.dumps({"seconds": seconds, "peak_bytes": peak}), flush=True)


if __name__ == "__main__":
    command, folder, *rest = sys.argv[1:]
    if command == "make":
        make(pathlib.Path(folder))
    elif command == "halve":
        halve(pathlib.Path(folder), pathlib.Path(rest[0]))
    else:
        serve(pathlib.Path(folder), int(rest[0]))
