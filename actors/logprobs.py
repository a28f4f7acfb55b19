"""Logprobs and entropies of chosen tokens, without ever holding all their logits.

A vocabulary of 150,000 makes the fp32 logits of 16,384 tokens 10 GB. Only positions that are trained on
come here, in chunks, and what each chunk keeps for the backward pass is its gradient with respect to the
hidden state, which is as small as the hidden state itself; one for the logprobs and, on request, one for the
entropies.
"""

from typing import Any

import torch
from torch import Tensor

from configs.model_shape import CHUNK_LOGITS


def token_logprobs(
    hidden: Tensor,
    lm_head_weight: Tensor,
    targets: Tensor,
    temperature: float,
    lm_head_bias: Tensor | None = None,
    chunk_logits: int | None = None,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """Logprob of each target and entropy of its distribution, at `temperature`.

    With z = (h W^T + b) / temperature: `logprob = z[target] - logsumexp(z)`, `entropy = -sum(p log p)`.

    hidden `[N, H]`, lm_head_weight `[V, H]`, lm_head_bias `[V]`, targets int64 `[N]` → logprobs fp32 `[N]`,
    differentiable in `hidden` only (the head is frozen), and entropies fp32 `[N]`, in nats, differentiable
    likewise with `entropy_gradient`, which costs one more product with the head and one more `[N, H]`.

    Example: two equal logits give logprob -0.693 and entropy 0.693 at every temperature.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if lm_head_weight.requires_grad:
        raise ValueError("lm_head_weight must be frozen: it gets no gradient here")
    chunk_logits = chunk_logits or CHUNK_LOGITS[hidden.device.type]
    return _TokenLogprobs.apply(
        hidden, lm_head_weight, lm_head_bias, targets, temperature, chunk_logits, entropy_gradient
    )


class _TokenLogprobs(torch.autograd.Function):
    """Gradients taken while the chunk's p is at hand:

    d logprob / d h = (W[target] - sum_v p_v W_v) / temperature
    d entropy / d h = -sum_v p_v (log p_v + entropy) W_v / temperature
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_logits: int,
        entropy_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        num_tokens, num_rows = len(hidden), max(1, chunk_logits // len(weight))
        logprobs = torch.empty(num_tokens, dtype=torch.float32, device=hidden.device)
        entropies = torch.empty_like(logprobs)
        jacobian = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        entropy_jacobian = torch.empty_like(hidden) if entropy_gradient and ctx.needs_input_grad[0] else None
        for begin in range(0, num_tokens, num_rows):
            rows = slice(begin, begin + num_rows)
            index = targets[rows, None]
            log_p = torch.nn.functional.linear(hidden[rows], weight, bias).float()
            log_p /= temperature
            log_p -= torch.logsumexp(log_p, dim=-1, keepdim=True)
            logprobs[rows] = log_p.gather(1, index).squeeze(1)
            p = log_p.exp()
            entropies[rows] = -torch.linalg.vecdot(p, log_p)
            if entropy_jacobian is not None:
                log_p.add_(entropies[rows, None]).mul_(p).neg_()
                entropy_jacobian[rows] = (log_p.to(weight.dtype) @ weight).div_(temperature)
            if jacobian is not None:
                p.neg_().scatter_add_(1, index, torch.ones_like(index, dtype=p.dtype))
                jacobian[rows] = (p.to(weight.dtype) @ weight).div_(temperature)
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropies)
        ctx.save_for_backward(jacobian, entropy_jacobian)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Tensor, grad_entropies: Tensor) -> tuple[Tensor | None, ...]:
        jacobian, entropy_jacobian = ctx.saved_tensors
        gradient = jacobian * grad_logprobs[:, None].to(jacobian.dtype)
        if entropy_jacobian is not None:
            gradient.addcmul_(entropy_jacobian, grad_entropies[:, None].to(jacobian.dtype))
        return gradient, None, None, None, None, None, None
