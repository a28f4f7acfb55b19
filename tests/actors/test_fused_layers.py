"""Norms and rotary embeddings by fewer operators against transformers' own: values and gradients, of every family."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from actors.fused_layers import fuse
from tests.deploy.exports import KINDS, random_model

TOKENS = torch.arange(3, 40)[None]


def run(model):
    """Logits, and the gradient of what the decoder reads."""
    embedded = model.get_input_embeddings()(TOKENS).detach().requires_grad_(True)
    logits = model(inputs_embeds=embedded, use_cache=False).logits
    weights = torch.sin(torch.arange(logits.numel(), dtype=torch.float32)).view(logits.shape)
    (logits * weights.to(logits.dtype)).sum().backward()
    return logits.detach(), embedded.grad


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_transformers(kind):
    model = random_model(kind)
    model.requires_grad_(False)
    fused = copy.deepcopy(model)
    num_norms = sum("norm" in name for name, _ in model.named_modules())
    num_attention = sum(name.endswith("self_attn") for name, _ in model.named_modules())
    # Phi-3 rotates in a function of its own, which is left alone where it turns a part of each head.
    assert fuse(fused) in (num_norms + num_attention, num_norms)
    assert "qwen" not in kind or fuse(copy.deepcopy(model)) == num_norms + num_attention
    for found, expected in zip(run(fused), run(model), strict=True):
        assert (found - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("kind", ["qwen2", "gemma3"])
def test_bfloat16_is_as_near_to_fp32_as_it_was(kind):
    exact = random_model(kind)
    plain = copy.deepcopy(exact).bfloat16()
    fused = copy.deepcopy(plain)
    fuse(fused)
    for at, expected in enumerate(run(exact)):
        distances = [float((run(model)[at].float() - expected).norm() / expected.norm()) for model in (fused, plain)]
        assert distances[0] < 1.3 * distances[1]


class Operators(TorchDispatchMode):
    """Counts what is computed; views are not."""

    VIEWS = frozenset("view t transpose expand slice unsqueeze squeeze detach split _unsafe_view alias select".split())

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.number += function.overloadpacket.__name__ not in self.VIEWS
        return function(*args, **(kwargs or {}))


def test_there_are_fewer_operators():
    model = random_model("qwen2").bfloat16().requires_grad_(False)
    fused = copy.deepcopy(model)
    fuse(fused)
    numbers = []
    for one in (fused, model):
        with Operators() as operators:
            run(one)
        numbers.append(operators.number)
    assert numbers[0] < 0.85 * numbers[1]


def test_what_computes_something_else_is_left_alone():
    class MeanNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

        def forward(self, x):
            return self.weight * (x - x.mean(-1, keepdim=True))

    assert fuse(nn.Sequential(MeanNorm(), nn.LayerNorm(8), nn.Linear(8, 8))) == 0
