"""torch.nn.functional's answers, and the gradients that its autograd finds for a fixed direction."""

import fixture
import torch
import torch.nn.functional as F

torch.set_grad_enabled(True)
generator = torch.Generator().manual_seed(2)
tensors = {}


def random(*shape):
    return torch.randn(shape, generator=generator)


def case(name, function, **inputs):
    """Keeps inputs, output, and the gradient of (output * direction).sum() to every input."""
    inputs = {key: value.requires_grad_() for key, value in inputs.items()}
    output = function(**inputs)
    direction = random(*output.shape)
    (output * direction).sum().backward()
    tensors[f"{name}.output"] = output
    tensors[f"{name}.direction"] = direction
    for key, value in inputs.items():
        tensors[f"{name}.{key}"] = value
        tensors[f"{name}.grad.{key}"] = value.grad


def heads(x, count):
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def attention(query, key, value, mask=None):
    mixed = F.scaled_dot_product_attention(heads(query, 4), heads(key, 4), heads(value, 4), attn_mask=mask)
    return mixed.transpose(1, 2).flatten(2)


case("linear", lambda x, weight, bias: F.linear(x, weight, bias), x=random(2, 7, 10), weight=random(6, 10), bias=random(6))
case("linear_row", lambda x, weight: F.linear(x, weight), x=random(3, 10), weight=random(6, 10))
for stride, padding, kernel in [(1, 1, 3), (2, 1, 3), (2, 0, 3), (1, 0, 1), (1, 2, 5)]:
    case(
        f"conv2d_{stride}{padding}{kernel}",
        lambda x, weight, bias: F.conv2d(x, weight, bias, stride=stride, padding=padding),
        x=random(2, 3, 9, 8),
        weight=random(5, 3, kernel, kernel),
        bias=random(5),
    )
case("group_norm", lambda x, weight, bias: F.group_norm(x, 4, weight, bias, 1e-5), x=random(2, 8, 5, 3) * 3 + 1, weight=random(8), bias=random(8))
case("group_norm_silu", lambda x, weight, bias: F.silu(F.group_norm(x, 2, weight, bias, 1e-6)), x=random(2, 8, 5, 3), weight=random(8), bias=random(8))
case("layer_norm", lambda x, weight, bias: F.layer_norm(x, (12,), weight, bias, 1e-5), x=random(2, 5, 12) * 2 - 1, weight=random(12), bias=random(12))
case("silu", F.silu, input=random(3, 50) * 8)
case("gelu", F.gelu, input=random(3, 50) * 4)
case("quick_gelu", lambda input: input * torch.sigmoid(1.702 * input), input=random(3, 50) * 40)
case("geglu", lambda x: x.chunk(2, dim=-1)[0] * F.gelu(x.chunk(2, dim=-1)[1]), x=random(2, 5, 12))
case("softmax", lambda input: F.softmax(input, dim=-1), input=random(2, 3, 4, 33) * 10)
case("attention", attention, query=random(2, 40, 16), key=random(2, 40, 16), value=random(2, 40, 16))
case("attention_cross", attention, query=random(2, 40, 16), key=random(2, 7, 16), value=random(2, 7, 16))
case("attention_masked", attention, query=random(2, 9, 16), key=random(2, 9, 16), value=random(2, 9, 16), mask=random(2, 1, 9, 9) * 3)
case("upsample", lambda input: F.interpolate(input, scale_factor=2.0, mode="nearest"), input=random(2, 3, 4, 5))
case("upsample_to", lambda input: F.interpolate(input, size=(7, 9), mode="nearest"), input=random(2, 3, 4, 5))

fixture.save(tensors)
