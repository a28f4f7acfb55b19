"""Norms and rotary embeddings of a transformers model by fewer operators: the same values, a gradient for the input alone.

transformers writes both out in elementary operators, each a pass over the states and a launch on a GPU, and autograd takes each
apart again on the way back. Here each is one function with its own backward. The weights of a norm are frozen, so no gradient for
them is made. Which layers of a model compute what is replaced here is found by trying them: whatever computes something else is
left as it is.
"""

from collections.abc import Callable
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROTARY = "apply_rotary_pos_emb"
"""What transformers' attention layers call it."""


def fuse(model: nn.Module) -> int:
    """Replace what can be replaced in a model that is on the CPU and whole; how many layers that were."""
    num_fused = 0
    for module in model.modules():
        if (offset := _norm_offset(module)) is not None:
            module.forward = partial(_norm, module, _eps(module), offset)
            num_fused += 1
        elif (forward := _rotary_forward(module)) is not None:
            module.forward = MethodType(forward, module)
            num_fused += 1
    return num_fused


def _norm(module: Any, eps: float, offset: float, x: Tensor) -> Tensor:
    weight = module.weight
    if x.is_cuda and not offset:
        return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)  # one kernel there and one back
    # A sum is not rounded to the weights' dtype: 1 is large beside them.
    out: Tensor = _RmsNorm.apply(x, weight.float() + offset if offset else weight, eps)
    return out


class _RmsNorm(torch.autograd.Function):
    """`y = w x̂` with `x̂ = x / sqrt(mean(x²) + eps)`; with g the gradient of `x̂`, that of x is `(g - x̂ mean(g x̂)) / sqrt(…)`.

    Zhang and Sennrich, arXiv 1910.07467. Arithmetic in fp32, one rounding at the end.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, weight, scale = ctx.saved_tensors
        unit = x * scale
        g = (grad * weight).float()
        mean = torch.linalg.vecdot(g, unit)[..., None].div_(-x.shape[-1])
        return g.addcmul_(unit, mean).mul_(scale).to(x.dtype), None, None


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """Queries and keys `[B, heads, T, D]` turned by their positions' angles, `cos` and `sin` `[B, T, D]` (arXiv 2104.09864).

    Value i of the first half of D turns with value i of the second.
    """
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _Rotate.apply(q, cos, sin), _Rotate.apply(k, cos, sin)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        first, second = x.chunk(2, -1)
        sin_first, sin_second = sin.chunk(2, -1)
        out = x * cos
        out_first, out_second = out.chunk(2, -1)
        out_first.addcmul_(second, sin_first, value=-1)
        out_second.addcmul_(first, sin_second)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        first, second = grad.chunk(2, -1)
        sin_first, sin_second = sin.chunk(2, -1)
        out = grad * cos
        out_first, out_second = out.chunk(2, -1)
        out_first.addcmul_(second, sin_second)
        out_second.addcmul_(first, sin_first, value=-1)
        return out, None, None


def _eps(module: nn.Module) -> Any:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _norm_offset(module: nn.Module) -> float | None:
    """What is added to the weights of an RMS norm: 0, or 1 as Gemma has it; None for any other module."""
    weight, eps = getattr(module, "weight", None), _eps(module)
    if not isinstance(weight, Tensor) or weight.dim() != 1 or not isinstance(eps, float) or list(module.children()):
        return None
    x = torch.linspace(-3, 2, 4 * len(weight)).view(4, -1)
    wide = weight.detach().float()
    with torch.no_grad():
        out = module(x)
        for offset in (0.0, 1.0):
            if _are_close(out, F.rms_norm(x, wide.shape, wide + offset, eps)):
                return offset
    return None


def _rotary_forward(module: nn.Module) -> Callable[..., Any] | None:
    """The forward of an attention layer with our rotary embedding in place of its own; None where its own does something else."""
    forward = type(module).forward
    if not isinstance(forward, FunctionType) or ROTARY not in forward.__code__.co_names:
        return None
    own = forward.__globals__[ROTARY]
    q, angles = torch.linspace(-3, 2, 2 * 4 * 6).view(1, 2, 4, 6), torch.linspace(0, 9, 24).view(1, 4, 6)
    turned = own(q, q[:, :1], angles.cos(), angles.sin())
    ours = rotate(q, q[:, :1], angles.cos(), angles.sin())
    if not all(map(_are_close, turned, ours)):
        return None
    # Only this layer's: other models of the process keep transformers' own function.
    replaced = {**forward.__globals__, ROTARY: partial(_rotate_or, own)}
    copy = FunctionType(forward.__code__, replaced, forward.__name__, forward.__defaults__, forward.__closure__)
    copy.__kwdefaults__ = forward.__kwdefaults__
    return copy


def _rotate_or(own: Callable[..., Any], q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, **options: Any) -> Any:
    """Where only a part of each head turns, the model's own function knows which."""
    if cos.shape[-1] != q.shape[-1]:
        return own(q, k, cos, sin, **options)
    return rotate(q, k, cos, sin, **options)


def _are_close(found: Any, expected: Tensor) -> bool:
    return isinstance(found, Tensor) and found.shape == expected.shape and torch.allclose(found, expected, atol=1e-5)
