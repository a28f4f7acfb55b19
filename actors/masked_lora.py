"""LoRA layers for training: several adapters on one base, on or off for a whole pass, PEFT's format in and out.

With x_t the input at position t of a row, W the frozen weights and s = alpha / rank (arXiv 2603.16867, KV-cache
sharing between base and reasoning mode):

    h_t = W x_t                 t < start: what the plain base computes, and so the keys and values it caches
    h_t = W x_t + s B A x_t     t >= start

PEFT's own layers are left out for three reasons: an fp32 adapter on a bf16 base computes in fp32 there,
which is slow and not what the engine computes; its masked variant cannot run a second forward before a
backward when gradients are checkpointed; and each of its layers costs several passes over the activations.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.architectures import adapted_layers
from configs.schema.run import LoraSection

PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AdapterState:
    """What all layers of a model do in one forward pass."""

    adapter: str | None = None
    """`policy`, `reference`, or None for the plain base."""
    dropout: float = 0.0


class AdapterSwitch:
    """The state of the forward pass that is running; set it before each."""

    def __init__(self) -> None:
        self.state = AdapterState()
        self._casts: dict[nn.Parameter, Tensor] | None = None

    @contextlib.contextmanager
    def casts_kept(self, are_kept: bool) -> Iterator[None]:
        """Adapters do not change in here, so each may be brought to the base's dtype once."""
        self._casts = {} if are_kept else None
        try:
            yield
        finally:
            self._casts = None

    def cast(self, p: nn.Parameter, dtype: torch.dtype) -> Tensor:
        """An adapter's matrix as the arithmetic wants it, without gradient."""
        if self._casts is None or p.dtype == dtype:
            return p.detach().to(dtype)
        if p not in self._casts:
            self._casts[p] = p.detach().to(dtype)
        return self._casts[p]

    def checkpoint_contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """`context_fn` of `torch.utils.checkpoint`: a backward pass recomputes under the state of its own forward,
        whatever other forwards came between."""
        return contextlib.nullcontext(), self._restored(self.state)

    @contextlib.contextmanager
    def _restored(self, state: AdapterState) -> Iterator[None]:
        current, self.state = self.state, state
        try:
            yield
        finally:
            self.state = current


class MaskedLora(nn.Module):
    """`y = W x + b + scale B A dropout(x)`, the last term only when the switch names an adapter.

    A `[r, in]` and B `[out, r]` of an adapter are fp32 parameters whatever the base's dtype; the arithmetic
    is done in the dtype of x.
    """

    def __init__(self, base: nn.Linear, scale: float, switch: AdapterSwitch) -> None:
        super().__init__()
        self.base = base
        self.scale = scale
        self.switch = switch

    def add_adapter(self, adapter: str, a: Tensor, b: Tensor, trainable: bool) -> None:
        device = self.base.weight.device
        self.register_parameter(f"{adapter}_a", nn.Parameter(a.float().to(device, copy=True), requires_grad=trainable))
        self.register_parameter(f"{adapter}_b", nn.Parameter(b.float().to(device, copy=True), requires_grad=trainable))

    def forward(self, x: Tensor) -> Tensor:
        state = self.switch.state
        if state.adapter is None:
            return self.base(x)
        a, b = getattr(self, f"{state.adapter}_a"), getattr(self, f"{state.adapter}_b")
        casts = self.switch.cast(a, x.dtype), self.switch.cast(b, x.dtype)
        dropped = F.dropout(x, state.dropout) if state.dropout > 0 else None
        y: Tensor = _Adapted.apply(x, dropped, self.base.weight, self.base.bias, a, b, *casts, self.scale)
        return y


class _Adapted(torch.autograd.Function):
    """`y = W x + c + s B A x'`, and its gradients for x, x' and, in fp32, for A and B.

    `x'` is x itself when `dropped` is None, and their gradients then are one. The product with B is added in place, and so is
    that with A on the way back: neither needs a copy of what it is added to.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        a_cast: Tensor,
        b_cast: Tensor,
        scale: float,
    ) -> Tensor:
        flat = x.flatten(0, -2)
        source = flat if dropped is None else dropped.flatten(0, -2)
        hidden = source @ a_cast.t()
        y = F.linear(flat, weight, bias).addmm_(hidden, b_cast.t(), alpha=scale)
        ctx.save_for_backward(source, hidden, weight, a_cast, b_cast)
        ctx.scale, ctx.is_dropped = scale, dropped is not None
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        source, hidden, weight, a_cast, b_cast = ctx.saved_tensors
        flat = grad.flatten(0, -2)
        # With beta 0 what is added to is not read.
        grad_hidden = torch.addmm(hidden, flat, b_cast, beta=0, alpha=ctx.scale)
        grad_x = grad_dropped = grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            grad_x = flat @ weight
            if not ctx.is_dropped:
                grad_x.addmm_(grad_hidden, a_cast)
            grad_x = grad_x.view(*grad.shape[:-1], -1)
        if ctx.is_dropped and ctx.needs_input_grad[1]:
            grad_dropped = (grad_hidden @ a_cast).view(*grad.shape[:-1], -1)
        if ctx.needs_input_grad[4]:
            grad_a = (grad_hidden.t() @ source).float()
        if ctx.needs_input_grad[5]:
            grad_b = torch.addmm(b_cast, flat.t(), hidden, beta=0, alpha=ctx.scale).float()
        return grad_x, grad_dropped, None, None, grad_a, grad_b, None, None, None


def insert_layers(model: nn.Module, lora: LoraSection, switch: AdapterSwitch) -> dict[str, MaskedLora]:
    """Wrap every linear layer that `lora.target_modules` means; returns them by their name in the base.

    Raises ValueError when a target names no linear layer of the model.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    targets, missing = adapted_layers(lora.target_modules, {_end(name) for name in found})
    if missing:
        raise ValueError(f"lora.target_modules: no linear layer of the model is named {', '.join(missing)}")
    layers = {}
    for name, module in found.items():
        if _end(name) not in targets:
            continue
        parent, _, child = name.rpartition(".")
        layers[name] = MaskedLora(module, lora.alpha / lora.rank, switch)
        setattr(model.get_submodule(parent), child, layers[name])
    return layers


def fresh_tensors(layers: dict[str, MaskedLora], rank: int, seed: int) -> dict[str, Tensor]:
    """A new adapter under PEFT's names, as PEFT starts one: A uniform in ±1/sqrt(in), B zero."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, layer in layers.items():
        bound = 1 / math.sqrt(layer.base.in_features)
        a = torch.empty(rank, layer.base.in_features).uniform_(-bound, bound, generator=generator)
        tensors[peft_name(name, "A")], tensors[peft_name(name, "B")] = a, torch.zeros(layer.base.out_features, rank)
    return tensors


def add_adapter(
    layers: dict[str, MaskedLora], adapter: str, tensors: dict[str, Tensor], rank: int, trainable: bool
) -> None:
    """Give every layer its matrices of `tensors`, which are under PEFT's names.

    Raises ValueError when names or shapes are not those of the layers.
    """
    expected: dict[str, tuple[int, ...]] = {}
    for name, layer in layers.items():
        expected[peft_name(name, "A")] = (rank, layer.base.in_features)
        expected[peft_name(name, "B")] = (layer.base.out_features, rank)
    got = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    check_shapes("adapter", expected, got)
    for name, layer in layers.items():
        layer.add_adapter(adapter, tensors[peft_name(name, "A")], tensors[peft_name(name, "B")], trainable)


def check_shapes(what: str, expected: dict[str, tuple[int, ...]], got: dict[str, tuple[int, ...]]) -> None:
    """Raises ValueError naming the first tensor whose name or shape is not as expected."""
    if got != expected:
        name = min(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
        raise ValueError(
            f"{what} does not fit the model and the lora section: {name}: "
            f"expected shape {expected.get(name)}, got {got.get(name)}"
        )


def adapter_parameters(layers: dict[str, MaskedLora], adapter: str) -> dict[str, nn.Parameter]:
    """Parameters of one adapter under PEFT's names."""
    return {
        peft_name(name, matrix): getattr(layer, f"{adapter}_{matrix.lower()}")
        for name, layer in layers.items()
        for matrix in "AB"
    }


def peft_name(layer: str, matrix: str) -> str:
    """Example: `model.layers.0.mlp.up_proj`, `A` → `base_model.model.model.layers.0.mlp.up_proj.lora_A.weight`."""
    return f"{PEFT_PREFIX}{layer}.lora_{matrix}.weight"


def peft_config(lora: LoraSection, tensors: Iterable[str]) -> dict[str, Any]:
    """The least that PEFT and vLLM need of an adapter with `tensors`, by their names; no paths, so that equal adapters are
    equal bytes."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted({_end(name.rpartition(".lora_")[0]) for name in tensors}),
        "bias": "none",
        "inference_mode": True,
    }


def _end(name: str) -> str:
    """Example: `model.layers.0.mlp.up_proj` → `up_proj`."""
    return name.rpartition(".")[2]
