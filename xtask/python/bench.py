"""The other programs' side of `cargo xtask bench`.

    bench.py PEER NAME DTYPE THREADS [FOLDER]

PEER is diffusers or openvino, NAME one of `xtask/bench/models.json`, DTYPE f32 or bf16. The model has random weights. One line of JSON comes
once it is loaded and has run twice; then another, with `seconds` and `peak_bytes`, for each line on standard input.

With FOLDER, that of a pipeline, NAME is `picture`, whole pictures, or `start`, which ends when all is ready for a picture's first step. Where NAME is
`kernels`, each line names one of `xtask/bench/kernels.json`, which runs once.
"""

import gc
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
import warnings

import torch

TIMESTEP = 500.0
PROMPT = "a lighthouse at night, oil on canvas"
STEPS = 4
FOLDER = pathlib.Path(__file__).parents[1] / "bench"
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


class Call(torch.nn.Module):
    """A model as a function of the inputs in their order, and of nothing else."""

    def __init__(self, name, model):
        super().__init__()
        self.name, self.model = name, model

    def forward(self, *inputs):
        if self.name.endswith("_vae_decode"):
            return self.model.decode(inputs[0]).sample
        if self.name.endswith("_vae_encode"):
            return self.model.encode(inputs[0]).latent_dist.parameters
        if "_text_encoder" in self.name:
            return self.model(inputs[0]).last_hidden_state
        sample, text, *added = (tensor.to(self.model.dtype) for tensor in inputs)
        added = dict(zip(("text_embeds", "time_ids"), added)) or None
        return self.model(sample, torch.tensor(TIMESTEP), text, added_cond_kwargs=added).sample


def entries():
    return json.loads((FOLDER / "models.json").read_text())


def build(entry):
    import diffusers
    import transformers

    if entry["class"] == "CLIPTextModel":
        return transformers.CLIPTextModel(transformers.CLIPTextConfig(**entry["config"])).eval()
    return getattr(diffusers, entry["class"])(**entry["config"]).eval()


def inputs(entry, dtype):
    generator = torch.Generator().manual_seed(0)
    if "input_ids" in entry["inputs"]:
        return [torch.randint(0, 49408, entry["inputs"]["input_ids"], generator=generator)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in entry["inputs"].values()]


def channels_last(tensors):
    return [
        tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor for tensor in tensors
    ]


def train_step(entry, dtype):
    """A step of LoRA training as diffusers' scripts do it: LoRAs in float32, whatever the model's dtype."""
    import peft

    model = build(entry).to(dtype).to(memory_format=torch.channels_last)
    model.requires_grad_(False)
    rank = entry["lora_rank"]
    config = peft.LoraConfig(
        r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=entry["lora_layers"]
    )
    model.add_adapter(config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    model.train()
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    sample, text, target = channels_last(inputs(entry, dtype))

    def run():
        with torch.enable_grad():
            predicted = model(sample, torch.tensor(TIMESTEP), text).sample
            loss = torch.nn.functional.mse_loss(predicted.float(), target.float())
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return run


def with_diffusers(name, entry, dtype):
    dtype = DTYPES[dtype]
    if name.endswith("_train_step"):
        return train_step(entry, dtype)
    model = Call(name, build(entry).to(dtype).to(memory_format=torch.channels_last))
    tensors = channels_last(inputs(entry, dtype))
    return lambda: model(*tensors)


def converted(name, entry, dtype=torch.float32):
    import openvino

    model = Call(name, build(entry).to(dtype))
    return openvino.convert_model(model, example_input=tuple(inputs(entry, torch.float32)))


def convert(name, path):
    """Writes a model as OpenVINO reads it, in half precision."""
    import openvino

    openvino.save_model(converted(name, entries()[name], torch.bfloat16), path)


def with_openvino(name, entry, dtype, threads):
    import openvino

    tensors = inputs(entry, torch.float32)
    if name == "sdxl_unet_step":
        # In float32, with torch's weights beside those that OpenVINO makes of them, it would not fit into 24 GB; in float16 torch takes minutes.
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/model.xml"
            subprocess.run([sys.executable, __file__, "convert", name, path], check=True)
            request = compiled(path, dtype, threads)
    else:
        request = compiled(converted(name, entry), dtype, threads)
    gc.collect()
    arrays = [tensor.numpy() for tensor in tensors]
    return lambda: request.infer(arrays)


def compiled(model, dtype, threads):
    import openvino

    hint = {"INFERENCE_PRECISION_HINT": dtype, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    return openvino.Core().compile_model(model, "CPU", hint).create_infer_request()


def open_pipeline(folder, dtype):
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=DTYPES[dtype])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pictures(folder, dtype):
    pipeline = open_pipeline(folder, dtype)
    for model in (pipeline.unet, pipeline.vae):
        model.to(memory_format=torch.channels_last)
    generator = torch.Generator()
    return lambda: pipeline(PROMPT, num_inference_steps=STEPS, generator=generator.manual_seed(0))


def start(folder, dtype):
    pipeline = open_pipeline(folder, dtype)
    pipeline.encode_prompt(PROMPT, "cpu", 1, True)
    pipeline.prepare_latents(1, 4, 512, 512, DTYPES[dtype], "cpu", torch.Generator().manual_seed(0))


def kernel(entry, dtype):
    """One of kernels.json, ready to run."""
    from torch.nn import functional

    def random(name):
        tensor = torch.randn(entry[name]).to(DTYPES[dtype])
        return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor

    operation, backward = entry["operation"], entry.get("backward", False)

    def ready(run, x):
        if not backward:
            return lambda: run(x)
        x.requires_grad_(True)

        def with_gradient():
            with torch.enable_grad():
                y = run(x)
                torch.autograd.grad(y, x, torch.ones_like(y))

        return with_gradient

    if operation == "attention":
        keys = random("keys") if "keys" in entry else None

        def heads(x):
            return x.unflatten(-1, (entry["heads"], -1)).transpose(1, 2)

        def attention(x):
            others = heads(x if keys is None else keys)
            return functional.scaled_dot_product_attention(
                heads(x), others, others, is_causal=entry.get("causal", False)
            )

        return ready(attention, random("queries"))
    x = random("x")
    ones = torch.ones(x.shape[1] if x.ndim == 4 else x.shape[-1], dtype=x.dtype)
    weight = random("weight") if "weight" in entry else None

    def conv2d(x):
        return functional.conv2d(x, weight, stride=entry["stride"], padding=weight.shape[-1] // 2)

    def geglu(x):
        value, gate = x.chunk(2, -1)
        return value * functional.gelu(gate)

    def upsample(x):
        return functional.interpolate(x, scale_factor=2.0, mode="nearest")

    return ready(
        {
            "conv2d": conv2d,
            "upsample_conv2d": lambda x: conv2d(upsample(x)),
            "linear": lambda x: functional.linear(x, weight),
            "linear_geglu": lambda x: geglu(functional.linear(x, weight)),
            "group_norm_silu": lambda x: functional.silu(functional.group_norm(x, 32, ones, ones)),
            "layer_norm": lambda x: functional.layer_norm(x, ones.shape, ones, ones),
            "geglu": geglu,
            "upsample": upsample,
            "softmax": lambda x: functional.softmax(x, -1),
            "add": lambda x: x + x,
        }[operation],
        x,
    )


def answer(run):
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    # In kB on Linux, in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(json.dumps({"seconds": seconds, "peak_bytes": peak}), flush=True)


def serve_kernels(dtype):
    kernels = json.loads((FOLDER / "kernels.json").read_text())
    print(json.dumps({"ready": True}), flush=True)
    last = run = None
    for name in map(str.strip, sys.stdin):
        if name != last:
            last, run = name, kernel(kernels[name], dtype)
            run()
        answer(run)


def main(peer, name, dtype, threads, folder=None):
    warnings.filterwarnings("ignore")
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    if name == "start":
        return start(folder, dtype)
    if name == "kernels":
        return serve_kernels(dtype)
    if name == "picture":
        run = pictures(folder, dtype)
    else:
        entry = entries()[name]
        run = with_diffusers(name, entry, dtype) if peer == "diffusers" else with_openvino(name, entry, dtype, int(threads))
        run()
    run()
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        answer(run)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    convert(*sys.argv[2:]) if sys.argv[1] == "convert" else main(*sys.argv[1:])
