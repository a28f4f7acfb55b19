"""Model architectures that go all the way: through learner and engines to the device.

Each is tested so with a small random model (`tests/integration/test_architectures.py`); what passed is in
`docs/reference/models.json`, and the page "Models" is made of it.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One of transformers' model classes that Terse supports from training to the device."""

    family: str
    """As people call it."""
    model_type: str
    """Of `config.json`."""
    device: str
    """llama.cpp's name."""


ARCHITECTURES = {
    "Qwen2ForCausalLM": Architecture(family="Qwen2, Qwen2.5", model_type="qwen2", device="qwen2"),
    "Qwen3ForCausalLM": Architecture(family="Qwen3", model_type="qwen3", device="qwen3"),
    "LlamaForCausalLM": Architecture(family="Llama 2, Llama 3.x, SmolLM2", model_type="llama", device="llama"),
    "MistralForCausalLM": Architecture(family="Mistral", model_type="mistral", device="llama"),
    "Gemma3ForCausalLM": Architecture(family="Gemma 3 (text)", model_type="gemma3_text", device="gemma3"),
    "SmolLM3ForCausalLM": Architecture(family="SmolLM3", model_type="smollm3", device="smollm3"),
    "Phi3ForCausalLM": Architecture(family="Phi-3, Phi-3.5, Phi-4-mini", model_type="phi3", device="phi3"),
}
"""By the name in `config.json`, `architectures`."""

DEVICE_NAMES = tuple(sorted({architecture.device for architecture in ARCHITECTURES.values()}))

FUSED_LAYERS = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""A linear layer that is several in one (Phi-3) → the parts, by the names that other models give them."""


def adapted_layers(targets: Collection[str], layers: Collection[str]) -> tuple[list[str], list[str]]:
    """Which of a model's linear layers `lora.target_modules` means, and which targets the model does not have.

    A fused layer is meant by its own name, or by those of all its parts. Example: targets `q_proj, k_proj, v_proj, o_prj`,
    layers `qkv_proj, o_proj` → `[qkv_proj], [o_prj]`.
    """
    fused = {name for name, parts in FUSED_LAYERS.items() if name in layers and set(parts) <= set(targets)}
    named = set(layers) | {part for name in fused for part in FUSED_LAYERS[name]}
    return sorted((set(targets) & set(layers)) | fused), sorted(set(targets) - named)


def parts_of(targets: Iterable[str]) -> set[str]:
    """Targets with fused layers written as their parts: what two ways of naming the same layers have in common."""
    return {part for name in targets for part in FUSED_LAYERS.get(name, (name,))}
