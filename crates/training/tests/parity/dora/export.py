"""DoRA and rsLoRA by PEFT on a linear layer and a convolution: outputs, and gradients of all that is trained and of the inputs."""

import json

import torch
from peft import LoraConfig, get_peft_model

import fixture

torch.set_grad_enabled(True)

CASES = {
    "dora": {"rank": 2, "alpha": 3.0, "use_dora": True, "use_rslora": False},
    "dora_stabilized": {"rank": 4, "alpha": 2.0, "use_dora": True, "use_rslora": True},
    "stabilized": {"rank": 4, "alpha": 2.0, "use_dora": False, "use_rslora": True},
}


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(6, 5)
        self.plain = torch.nn.Linear(6, 5, bias=False)
        self.conv = torch.nn.Conv2d(3, 4, 3, stride=2, padding=1)


tensors = {
    "input/linear": torch.randn(2, 7, 6),
    "input/plain": torch.randn(2, 7, 6),
    "input/conv": torch.randn(2, 3, 6, 6),
}
start = fixture.randomize(Model())
for name, value in start.state_dict().items():
    tensors[f"weight/{name}"] = value
for name, case in CASES.items():
    model = Model()
    model.load_state_dict(start.state_dict())
    config = LoraConfig(
        r=case["rank"],
        lora_alpha=case["alpha"],
        use_dora=case["use_dora"],
        use_rslora=case["use_rslora"],
        target_modules=r"linear|plain|con.",
    )
    model = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(3)
    for key, parameter in sorted(model.named_parameters()):
        # Magnitudes begin as the lengths of the weights, and move a little.
        if parameter.requires_grad:
            spread = 0.1 if "magnitude" in key else 0.5
            parameter.data += torch.randn(parameter.shape, generator=generator) * spread
    for layer in ["linear", "plain", "conv"]:
        module = getattr(model.base_model.model, layer)
        x = tensors[f"input/{layer}"].clone().requires_grad_(True)
        output = module(x)
        (output * torch.cos(torch.arange(output.numel(), dtype=torch.float32)).reshape(output.shape)).sum().backward()
        tensors[f"{name}/{layer}/output"] = output
        tensors[f"{name}/{layer}/input_gradient"] = x.grad
        for part in ["lora_A", "lora_B", "lora_magnitude_vector"]:
            if part in dict(module.named_children()) and "default" in getattr(module, part):
                parameter = getattr(module, part)["default"].weight
                tensors[f"{name}/{layer}/{part}"] = parameter
                tensors[f"{name}/{layer}/{part}_gradient"] = parameter.grad
fixture.save(tensors)
(fixture.folder() / "cases.json").write_text(json.dumps(CASES, indent=1) + "\n")
