"""The gradients that torch's autograd finds at odd sizes, in float64, and how far its own in bfloat16 are from them.

Inputs are numbers that bfloat16 has, so that all begin with the same ones."""

import fixture
import torch
import torch.nn.functional as F

torch.set_grad_enabled(True)
generator = torch.Generator().manual_seed(5)
tensors = {}


def random(*shape):
    return torch.randn(shape, generator=generator).bfloat16().double()


def gradients(function, inputs, direction, dtype):
    inputs = {key: value.detach().to(dtype, copy=True).requires_grad_() for key, value in inputs.items()}
    output = function(*inputs.values())
    if direction is None:
        direction = random(*output.shape)
    output.backward(direction.to(dtype))
    return direction, {key: value.grad.double() for key, value in inputs.items()}


def case(name, function, **inputs):
    """Keeps inputs, the direction in which the output is differentiated, and for each input its gradient and the root mean square of the error that
    the gradient has in bfloat16."""
    inputs = {key: value.bfloat16().double() for key, value in inputs.items()}
    direction, exact = gradients(function, inputs, None, torch.float64)
    _, brain = gradients(function, inputs, direction, torch.bfloat16)
    tensors[f"{name}.direction"] = direction.bfloat16()
    for key, value in inputs.items():
        tensors[f"{name}.{key}"] = value.bfloat16()
        tensors[f"{name}.grad.{key}"] = exact[key].float()
        tensors[f"{name}.bf16_error.{key}"] = (brain[key] - exact[key]).square().mean().sqrt().float()


def heads(x, count):
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def attention(query, key, value, mask=None):
    mixed = F.scaled_dot_product_attention(heads(query, 2), heads(key, 2), heads(value, 2), attn_mask=mask)
    return mixed.transpose(1, 2).flatten(2)


case("linear", F.linear, x=random(3, 17, 33), weight=random(31, 33), bias=random(31))
case("linear_narrow", F.linear, x=random(1, 33, 5), weight=random(3, 5), bias=random(3))
for stride, padding, kernel, channels, out_channels, height, width in [
    (1, 1, 3, 9, 13, 14, 11),
    (1, 1, 3, 8, 3, 5, 7),
    (2, 1, 3, 9, 5, 9, 8),
    (2, 0, 3, 5, 9, 8, 9),
    (1, 0, 1, 17, 9, 7, 5),
    (1, 2, 1, 3, 5, 4, 5),
    (1, 2, 5, 3, 5, 7, 6),
    (3, 1, 4, 3, 5, 8, 9),
]:
    case(
        f"conv2d_{stride}{padding}{kernel}_{channels}",
        lambda x, weight, bias: F.conv2d(x, weight, bias, stride=stride, padding=padding),
        x=random(2, channels, height, width),
        weight=random(out_channels, channels, kernel, kernel),
        bias=random(out_channels),
    )
case(
    "conv2d_oblong",
    lambda x, weight: F.conv2d(x, weight, padding=1),
    x=random(1, 3, 6, 7),
    weight=random(5, 3, 3, 1),
)
case("group_norm", lambda x, weight, bias: F.group_norm(x, 3, weight, bias, 1e-5), x=random(2, 6, 5, 7) * 2 + 1, weight=random(6), bias=random(6))
case("group_norm_silu", lambda x, weight, bias: F.silu(F.group_norm(x, 3, weight, bias, 1e-5)), x=random(2, 9, 7, 3), weight=random(9), bias=random(9))
case(
    "add_group_norm_silu",
    lambda x, vectors, weight, bias: F.silu(F.group_norm(x + vectors[:, :, None, None], 2, weight, bias, 1e-5)),
    x=random(3, 6, 5, 3),
    vectors=random(3, 6),
    weight=random(6),
    bias=random(6),
)
case("layer_norm", lambda x, weight, bias: F.layer_norm(x, (33,), weight, bias, 1e-5), x=random(3, 17, 33) * 2 - 1, weight=random(33), bias=random(33))
case("silu", F.silu, x=random(3, 77) * 8)
case("gelu", F.gelu, x=random(3, 77) * 4)
case("quick_gelu", lambda x: x * torch.sigmoid(1.702 * x), x=random(3, 77) * 8)
case("geglu", lambda x: x.chunk(2, dim=-1)[0] * F.gelu(x.chunk(2, dim=-1)[1]), x=random(2, 5, 66))
case("softmax", lambda x: F.softmax(x, dim=-1), x=random(3, 5, 33) * 4)
case("attention", attention, query=random(2, 33, 34), key=random(2, 33, 34), value=random(2, 33, 34))
case("attention_cross", attention, query=random(1, 17, 80), key=random(1, 77, 80), value=random(1, 77, 80))
mask = random(2, 1, 9, 31)
case(
    "attention_masked",
    lambda query, key, value: attention(query, key, value, mask.to(query.dtype)),
    query=random(2, 9, 16),
    key=random(2, 31, 16),
    value=random(2, 31, 16),
)
tensors["attention_masked.mask"] = mask.bfloat16()
case("add", lambda x, y: x + y, x=random(3, 17), y=random(3, 17))
case("add_per_channel", lambda x, vectors: x + vectors[:, :, None, None], x=random(2, 5, 7, 3), vectors=random(2, 5))
case(
    "scale_shift_per_channel",
    lambda x, scale, shift: x * (1 + scale[:, :, None, None]) + shift[:, :, None, None],
    x=random(2, 5, 7, 3),
    scale=random(2, 5),
    shift=random(2, 5),
)
case("cat", lambda x, y: torch.cat([x, y], 1), x=random(1, 3, 9, 11), y=random(1, 5, 9, 11))
case("upsample", lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"), x=random(2, 3, 5, 7))
case("upsample_to", lambda x: F.interpolate(x, size=(9, 13), mode="nearest"), x=random(2, 3, 5, 7))
case("pixels_to_tokens", lambda x: x.flatten(2).transpose(1, 2), x=random(2, 17, 5, 7))
case("tokens_to_pixels", lambda x: x.transpose(1, 2).unflatten(2, (5, 7)), x=random(2, 35, 17))

fixture.save(tensors)
