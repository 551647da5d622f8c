"""Opens what the tests have written in the reference libraries: `python check_written.py TARGET/tmp/lora_layouts`.

For each file that `written.rs` has made of a fixture, diffusers (PEFT for folders) must load it without a warning of unknown keys, and get the
changes that `deltas.safetensors` has for the fixture. Files in kohya's layout whose alphas differ from layer to layer are left out: the reference
takes one alpha for all attention layers (see export.py).
"""

import os
import pathlib
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import logging

import peft
import safetensors.torch
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

SOURCE = (pathlib.Path(__file__).parent / "export.py").read_text()
# The tiny models, without what the exporter does with them.
exec(SOURCE[SOURCE.index("SD = dict("):SOURCE.index("ATTENTION = ")])
written = pathlib.Path(sys.argv[1])
deltas = safetensors.torch.load_file(pathlib.Path(__file__).parent / "deltas.safetensors")

NAMES = {"diffusers": "diffusers.safetensors", "diffusers_xl": "diffusers_xl.safetensors", "unet_adapter": "unet_adapter.safetensors",
         "diffusers_dora": "diffusers_dora.safetensors", "kohya": "kohya.safetensors", "kohya_original_xl": "kohya_original_xl.safetensors",
         "peft": "peft/adapter_model.safetensors", "diffusers_oldest": "diffusers_oldest.bin", "attn_procs": "attn_procs.bin"}
# One alpha and one rank for all attention layers, and no DoRA.
SAME_ALPHA = ["kohya_original_xl"]


def check(label, fixture, models):
    expected = {name.split("|", 1)[1]: value for name, value in deltas.items() if name.split("|")[0] == fixture}
    found = {}
    for component, model in models.items():
        for name, module in model.named_modules():
            if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer) and hasattr(module, "get_delta_weight"):
                (adapter,) = module.active_adapters
                delta = module.get_delta_weight(adapter).detach().double().flatten(1)
                weights = 1.0 / torch.arange(1, delta.shape[1] + 1, dtype=torch.float64)
                if component == "text_encoder" and not hasattr(model, "text_model"):
                    name = f"text_model.{name}"
                found[f"{component}|{name}"] = (delta @ weights).float()
    assert found.keys() == expected.keys(), (label, sorted(found.keys() ^ expected.keys())[:5])
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=lambda m: f"{label} {name}: {m}")
    print(f"{label}: {len(found)} layers")


def pipeline(name):
    return sdxl() if name.endswith("_xl") else sd()


def components(pipe):
    return {name: model for name in ("unet", "text_encoder", "text_encoder_2") if (model := getattr(pipe, name, None)) is not None}


warnings = []
handler = logging.Handler()
handler.emit = lambda record: warnings.append(record.getMessage())
logging.getLogger("diffusers").addHandler(handler)
for name, fixture in NAMES.items():
    for layout in ["diffusers"] + (["kohya"] if name in SAME_ALPHA else []):
        warnings.clear()
        pipe = pipeline(name)
        pipe.load_lora_weights(str(written / f"{name}.{layout}.safetensors"))
        unexpected = [message for message in warnings if "unexpected keys" in message or "missing keys" in message]
        assert not unexpected, (name, unexpected)
        check(f"{name} in the {layout} layout", fixture, components(pipe))
    folder = written / f"{name}.peft"
    pipe = pipeline(name)
    models = {}
    for component, model in components(pipe).items():
        own = folder if (folder / "adapter_config.json").exists() else folder / component
        has_component = any(key.startswith(f"{fixture}|{component}|") for key in deltas)
        if has_component:
            models[component] = peft.PeftModel.from_pretrained(model, own).base_model.model
    check(f"{name} in PEFT's layout", fixture, models)
folded = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v", "conv_in", "time_emb_proj"], rank_pattern={"conv_in": 4}, alpha_pattern={"conv_in": 4})
model = peft.get_peft_model(UNet2DConditionModel(**SD), folded)
result = peft.set_peft_model_state_dict(model, safetensors.torch.load_file(written / "peft.folded.safetensors"))
assert not result.unexpected_keys
check("PEFT's weights alone", "peft/adapter_model.safetensors", {"unet": model.base_model.model})
