"""One ExecuTorch file with two methods over one KV cache: `base`, and `reasoning` with the adapter on.

    python -m deploy.export.pte --base MODEL_DIR --adapter EXPORT/adapter --tokens 384 --out model.pte

Each method takes token ids int64 `[1, T]` and their positions int64 `[T]`, T from 1 to the chunk, and returns the logits
float32 `[1, 1, V]` after the last one. Keys and values are buffers that both methods share (`share_mutable_buffers`), so
what `base` computed of a prompt is there when `reasoning` goes on from its last token. Weights are float32, computed by
XNNPACK. Needs the packages `train` and executorch, see TARGETS.md.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import StaticCache

from actors import adapters
from actors.masked_lora import AdapterState, add_adapter
from actors.policy_model import PolicyModel
from configs.schema.run import LoraSection, ModelSection

METHODS = ("base", "reasoning")
CHUNK_TOKENS = 128
"""Tokens of one call, at most."""


class CachedModel(nn.Module):
    """A decoder whose keys and values are buffers of the module, where an exported program can share them."""

    def __init__(self, base: Any, num_tokens: int) -> None:
        super().__init__()
        self.base, config = base, base.config
        self.cache: Any = StaticCache(config=config, max_cache_len=num_tokens)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.cache.early_initialization(1, config.num_key_value_heads, head_dim, torch.float32, torch.device("cpu"))
        layers: list[Any] = self.cache.layers
        for number, layer in enumerate(layers):
            self.register_buffer(f"keys_{number}", layer.keys.clone())
            self.register_buffer(f"values_{number}", layer.values.clone())

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        # Taken anew in each call: the tracer swaps the module's buffers, not what the cache object holds.
        for number, layer in enumerate(self.cache.layers):
            layer.keys, layer.values = getattr(self, f"keys_{number}"), getattr(self, f"values_{number}")
            layer.cumulative_length = positions[0].clone()
        decoder, head = self.base.get_decoder(), self.base.get_output_embeddings()
        states = decoder(input_ids=token_ids, past_key_values=self.cache, use_cache=True).last_hidden_state[:, -1:]
        # A tied head is the embeddings' tensor under a second name, and a program takes each tensor once.
        is_tied = self.base.config.tie_word_embeddings
        return F.linear(states, self.base.get_input_embeddings().weight) if is_tied else head(states)


def write_pte(base_dir: Path, adapter_dir: Path, path: Path, num_tokens: int) -> None:
    """`num_tokens`: prompt and completion together, at most."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
    from executorch.exir.passes import MemoryPlanningPass

    tensors, peft = adapters.unpack(adapters.read_directory(adapter_dir))
    lora = LoraSection(rank=peft["r"], alpha=peft["lora_alpha"], target_modules=tuple(peft["target_modules"]))
    policy = PolicyModel(ModelSection(dtype="float32"), str(base_dir), lora, False, attention="sdpa")
    add_adapter(policy.layers, "policy", tensors, lora.rank, trainable=False)
    model = CachedModel(policy.base, num_tokens).eval()
    length = torch.export.Dim("length", min=1, max=min(CHUNK_TOKENS, num_tokens - 1))
    example = (torch.zeros(1, 4, dtype=torch.long), torch.arange(4))
    programs = {}
    with torch.no_grad():
        for name, state in zip(METHODS, (AdapterState(), AdapterState(adapter="policy")), strict=True):
            policy.switch.state = state
            programs[name] = torch.export.export(
                model, example, dynamic_shapes=({1: length}, {0: length}), strict=False
            )
        edge = to_edge_transform_and_lower(
            programs,
            partitioner={name: [XnnpackPartitioner()] for name in METHODS},
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
        )
        plan = MemoryPlanningPass(share_mutable_buffers=True)
        program = edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=plan, emit_mutable_buffer_names=True))
    path.write_bytes(program.buffer)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.export.pte", description=__doc__.split("\n")[0])
    parser.add_argument("--base", type=Path, required=True, help="Hugging Face directory, or runs/NAME/int4_base")
    parser.add_argument("--adapter", type=Path, required=True, help="PEFT directory, e.g. runs/NAME/export/adapter")
    parser.add_argument("--tokens", type=int, default=1024, help="prompt and completion together, at most")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    write_pte(arguments.base, arguments.adapter, arguments.out, arguments.tokens)
    print(f"{arguments.out}: {arguments.out.stat().st_size} bytes, methods {' and '.join(METHODS)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
