"""Masked LoRA written out as plainly as can be: an independent implementation to compare with."""

import numpy as np
import torch
from transformers import AutoModelForCausalLM


class DenseReference:
    """A Hugging Face model whose linear layers add `mask ⊙ (scale · B (A x))`, one row at a time, in fp32."""

    def __init__(self, model_dir, tensors, scale, dtype=torch.float32):
        """`tensors`: A and B under PEFT's names."""
        self.model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype).eval()
        self.tensors = {name: tensor.clone().to(dtype).requires_grad_() for name, tensor in tensors.items()}
        self.scale = scale
        self.mask = None
        for name, module in self.model.named_modules():
            key = f"base_model.model.{name}.lora_A.weight"
            if key in self.tensors:
                module.register_forward_hook(self._hook(key, key.replace("lora_A", "lora_B")))

    def _hook(self, name_a, name_b):
        def add(module, inputs, output):
            if self.mask is None:
                return output
            delta = inputs[0] @ self.tensors[name_a].T @ self.tensors[name_b].T
            return output + self.scale * self.mask[None, :, None] * delta

        return add

    def logprobs(self, token_ids, start, temperature=1.0):
        """Logprob of each token but the first `[T - 1]`; the adapter acts from `start` on (None: never)."""
        tokens = torch.from_numpy(np.asarray(token_ids, dtype=np.int64))[None]
        positions = torch.arange(tokens.shape[1])
        self.mask = None if start is None else (positions >= start).to(self.model.dtype)
        logits = self.model(input_ids=tokens).logits[0, :-1].float() / temperature
        return logits.log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]


def random_adapter(model_dir, rank, seed, scale=0.05):
    """Random A and B, large enough to matter, for all linear layers, under PEFT's names."""
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    tensors = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            a = torch.randn(rank, module.in_features, generator=generator) / module.in_features**0.5
            b = torch.randn(module.out_features, rank, generator=generator) * scale
            tensors[f"base_model.model.{name}.lora_A.weight"] = a
            tensors[f"base_model.model.{name}.lora_B.weight"] = b
    return tensors
