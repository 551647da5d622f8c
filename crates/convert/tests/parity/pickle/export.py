"""Checkpoints written by torch.save in each of its formats, and their tensors as torch.load reads them."""

import collections
import io
import pickle
import struct
import sys
import types
import warnings

import numpy
import torch

from fixture import folder, save

generator = torch.Generator().manual_seed(1)
expected = {}


def values(*shape, dtype=torch.float32):
    if dtype == torch.bool:
        return torch.rand(*shape, generator=generator) > 0.5
    if not dtype.is_floating_point:
        return torch.randint(0, 100, shape, generator=generator, dtype=torch.int64).to(dtype)
    return torch.randn(*shape, generator=generator).to(dtype)


def state_dict():
    """All that a state dict has in real files: every element type, views, parameters, empty and single tensors, `_metadata`."""
    base = values(6, 8)
    tensors = collections.OrderedDict()
    for dtype in ["float32", "float16", "bfloat16", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"]:
        tensors[f"dtypes.{dtype}"] = values(3, 5, dtype=getattr(torch, dtype))
    tensors["views.whole"] = base
    tensors["views.shared"] = base
    tensors["views.rows"] = base[2:5]
    tensors["views.columns"] = base[:, 3:7]
    tensors["views.transposed"] = base.t()
    tensors["views.stepped"] = base[::2, 1::3]
    tensors["views.permuted"] = values(2, 3, 4, 5).permute(0, 2, 3, 1)
    tensors["views.channels_last"] = values(2, 3, 4, 5).to(memory_format=torch.channels_last)
    tensors["views.expanded"] = values(1, 4).expand(3, 4)
    tensors["views.half_transposed"] = values(4, 3, dtype=torch.float16).t()
    tensors["parameter"] = torch.nn.Parameter(values(2, 3))
    tensors["empty"] = values(0, 4)
    tensors["single"] = torch.tensor(3.25)
    tensors["position_ids"] = torch.arange(77).expand((1, -1))
    tensors._metadata = collections.OrderedDict({"": {"version": 1}, "views": {"version": 2}})
    return tensors


def write(name, value, expect, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(value, folder() / name, **options)
    loaded = torch.load(folder() / name, weights_only=False)
    for key, tensor in expect(loaded).items():
        expected[f"{name}:{key}"] = tensor


def identity(loaded):
    return loaded


weights = state_dict()
for protocol in [2, 3, 4, 5]:
    write(f"zip_protocol_{protocol}.pt", weights, identity, pickle_protocol=protocol)
for protocol in [1, 2, 4]:
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": False}
    write(f"legacy_protocol_{protocol}.pt", weights, identity, **options)


class ModelCheckpoint:
    """Stands for the class of pytorch_lightning, which is the key of its own state in files of that library's 1.x."""


ModelCheckpoint.__module__ = "pytorch_lightning.callbacks.model_checkpoint"
ModelCheckpoint.__qualname__ = "ModelCheckpoint"
lightning = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
lightning.ModelCheckpoint = ModelCheckpoint
for name in ["pytorch_lightning", "pytorch_lightning.callbacks"]:
    sys.modules[name] = types.ModuleType(name)
sys.modules[lightning.__name__] = lightning

trained = torch.nn.Linear(4, 3)
with torch.enable_grad():
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-4)
    trained(values(2, 4)).sum().backward()
    optimizer.step()
checkpoint = {
    "epoch": 12,
    "global_step": 470000,
    "pytorch-lightning_version": "1.4.2",
    "state_dict": collections.OrderedDict(
        {
            "model.diffusion_model.input_blocks.0.0.weight": values(4, 4, 3, 3),
            "model_ema.decay": torch.tensor(0.9999),
            "betas": values(10),
        }
    ),
    "callbacks": {
        ModelCheckpoint: {
            "monitor": "val/loss_simple_ema",
            "best_model_score": torch.tensor(0.125),
            "best_model_path": "logs/epoch=12.ckpt",
            "current_score": numpy.float32(0.125),
            "scores": numpy.arange(6, dtype=numpy.float64).reshape(2, 3),
            "dirpath": "logs",
        }
    },
    "optimizer_states": [optimizer.state_dict()],
    "lr_schedulers": [{"base_lrs": [1e-4], "last_epoch": 470000, "bytes": b"\x00\xff", "set": {1, 2}, "large": 2**100}],
    "hparams": {"device": torch.device("cpu"), "dtype": torch.float16, "shape": torch.Size([1, 2]), "none": None},
}
for name, options in [("lightning.ckpt", {}), ("lightning_legacy.ckpt", {"_use_new_zipfile_serialization": False})]:
    write(name, checkpoint, lambda loaded: loaded["state_dict"], **options)

# cloneofsimo's LoRA: a list of up and down weights; a web UI's embedding; the same with torch's own container.
pairs = [values(8, 4), values(4, 8), values(6, 2), values(2, 6)]
write("list.pt", pairs, lambda loaded: {str(i): tensor for i, tensor in enumerate(loaded)})
embedding = {
    "string_to_token": {"*": 265},
    "string_to_param": {"*": torch.nn.Parameter(values(2, 8))},
    "name": "style",
    "step": 499,
    "sd_checkpoint": None,
}
write("embedding.pt", embedding, lambda loaded: {"string_to_param.*": loaded["string_to_param"]["*"]})
container = {
    "string_to_token": {"*": torch.tensor(265)},
    "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(values(2, 8))}),
}
write(
    "parameter_dict.pt",
    container,
    lambda loaded: {
        "string_to_param.*": loaded["string_to_param"]["*"],
        "string_to_token.*": loaded["string_to_token"]["*"],
    },
)
write("parallel.pt", {"module": {"module.weight": values(2, 2), "module.bias": values(2)}, "epoch": 3},
      lambda loaded: {key.removeprefix("module."): tensor for key, tensor in loaded["module"].items()})
tagged = values(3)
tagged.note = "an attribute"
write("subclass.pt", {"tagged": tagged, "float8": values(4).to(torch.float8_e4m3fn), "uint16": torch.tensor([1, 65535], dtype=torch.uint16)}, identity)


# Parts of storages, which torch wrote before 0.4: the fields behind a storage's key say which part is meant.
class OldPickler(pickle.Pickler):
    def persistent_id(self, value):
        if isinstance(value, tuple) and value and value[0] == "part":
            return ("storage", torch.FloatStorage, "root", "cpu", 12, value[1:])
        return None


class Part:
    def __init__(self, part, shape):
        self.part, self.shape = part, shape

    def __reduce__(self):
        return torch._utils._rebuild_tensor, (self.part, 0, self.shape, (self.shape[1], 1))


root = values(12)
stream = io.BytesIO()
pickle.dump(torch.serialization.MAGIC_NUMBER, stream, protocol=2)
pickle.dump(torch.serialization.PROTOCOL_VERSION, stream, protocol=2)
pickle.dump({"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}, stream, protocol=2)
parts = {"first": Part(("part", "one", 0, 6), (2, 3)), "second": Part(("part", "two", 6, 6), (3, 2))}
OldPickler(stream, protocol=2).dump(parts)
pickle.dump(["root"], stream, protocol=2)
stream.write(struct.pack("<q", 12) + root.numpy().tobytes())
(folder() / "parts.pt").write_bytes(stream.getvalue())
for key, tensor in torch.load(folder() / "parts.pt", weights_only=False).items():
    expected[f"parts.pt:{key}"] = tensor

save(expected)
