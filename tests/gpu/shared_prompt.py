"""Does a prompt that is computed once give the same gradient? `python -m tests.gpu.shared_prompt`

Below `start` everything is the plain base's, so a prompt's keys and values carry no gradient and are the same for all completions of
a group. This computes the adapter's gradient from padded rows, as the learner does, and from keys and values that were computed once
without gradient, in fp32 and in bf16, and says how far each is from the padded one in fp32. A prototype: the learner does not share
prompts yet.
"""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from actors.logprobs import token_logprobs
from actors.masked_lora import AdapterState, add_adapter
from actors.micro_batches import MicroBatch, split_rows
from actors.policy_model import PolicyModel
from actors.types import TrainRow
from configs.schema.run import ModelSection
from tests.gpu.models import DEVICE, IS_TINY, lora_of, make_model, make_rows, random_tensors, small, vocabulary_of

NAME, RANK = small("qwen2-0.5b"), 8 if IS_TINY else 32
NUM_GROUPS, GROUP_SIZE, NUM_TOKENS = (2, 4, 12) if IS_TINY else (4, 8, 250)
PROMPTS = (9,) if IS_TINY else (150, 500)

Groups = Sequence[Sequence[TrainRow]]


def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: Any = None, **_: Any) -> Any:
    """Causal, aligned to the end of the keys."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    repeats = query.shape[1] // key.shape[1]
    seen = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device).tril(num_keys - num_queries)
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


def make_groups(num_prompt: int) -> Groups:
    groups = []
    for seed in range(NUM_GROUPS):
        rows = make_rows(GROUP_SIZE, num_prompt, num_prompt + NUM_TOKENS, vocabulary_of(NAME), seed)
        for row in rows[1:]:
            row.token_ids[:num_prompt] = rows[0].token_ids[:num_prompt]
        groups.append(rows)
    return groups


def count_trained(groups: Groups) -> int:
    return sum(int(row.loss_mask.sum()) for rows in groups for row in rows)


def padded(policy: PolicyModel, groups: Groups, budget_tokens: int) -> None:
    """The learner's own forward over padded rows, and its backward."""
    rows = [row for group in groups for row in group]
    for indices in split_rows(rows, budget_tokens):
        batch = MicroBatch.from_rows([rows[index] for index in indices]).to(torch.device(DEVICE))
        logprobs, _ = policy(batch, "policy", 1.0)
        (-(logprobs * batch.advantages).sum() / count_trained(groups)).backward()


def shared(policy: PolicyModel, groups: Groups) -> None:
    """The same loss; each group's prompt is computed once, by the plain base, without gradient."""
    decoder, head = policy.base.get_decoder(), policy.base.get_output_embeddings()
    for rows in groups:
        begin = int(rows[0].loss_mask.argmax()) - 1  # the adapter is on from the last prompt token on
        ids = torch.from_numpy(np.stack([row.token_ids for row in rows]).astype(np.int64)).to(DEVICE)
        cache, again = DynamicCache(), DynamicCache()
        with torch.no_grad():
            policy.switch.state = AdapterState(adapter=None)
            decoder(input_ids=ids[:1, :begin], past_key_values=cache, use_cache=True)
        for number, layer in enumerate(cache.layers):
            again.update(*(part.repeat_interleave(len(rows), 0) for part in (layer.keys, layer.values)), number)
        policy.switch.state = AdapterState(adapter="policy")
        positions = torch.arange(begin, ids.shape[1], device=DEVICE)[None]
        found = decoder(input_ids=ids[:, begin:], position_ids=positions, past_key_values=again, use_cache=True)
        hidden = found.last_hidden_state[:, :-1]
        targets = ids[:, begin + 1 :].reshape(-1)
        logprobs, _ = token_logprobs(hidden.reshape(-1, hidden.shape[-1]), head.weight, targets, 1.0)
        advantages = torch.tensor([row.advantage for row in rows], device=DEVICE)
        (-(logprobs.view(len(rows), -1) * advantages[:, None]).sum() / count_trained(groups)).backward()


def gradient(policy: PolicyModel, attention: str, backward: Callable[[], None]) -> Tensor:
    policy.base.config._attn_implementation = attention
    policy.zero_grad()
    backward()
    return torch.cat([p.grad.float().flatten() for p in policy.parameters() if p.grad is not None])


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def main() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    ALL_ATTENTION_FUNCTIONS.register("aligned", attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register("aligned", lambda *_, **__: None)
    print("| prompt | dtype | way | to fp32 padded | to padded |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        for num_prompt in PROMPTS:
            groups, found = make_groups(num_prompt), {}
            whole = GROUP_SIZE * (num_prompt + NUM_TOKENS)
            for dtype in ("float32", "bfloat16"):
                model = ModelSection(dtype=dtype)  # type: ignore[arg-type]
                policy = PolicyModel(model, make_model(NAME, Path(directory)), lora_of(RANK), False)
                add_adapter(policy.layers, "policy", random_tensors(NAME, RANK, 1), RANK, trainable=True)
                policy.to(DEVICE)
                found[dtype, "padded"] = gradient(policy, "sdpa", partial(padded, policy, groups, whole))
                found[dtype, "a quarter"] = gradient(policy, "sdpa", partial(padded, policy, groups, whole // 4))
                found[dtype, "shared"] = gradient(policy, "aligned", partial(shared, policy, groups))
            for (dtype, way), one in found.items():
                to_fp32, to_own = (distance(one, found[other, "padded"]) for other in ("float32", dtype))
                print(f"| {num_prompt} | {dtype} | {way} | {to_fp32:.1e} | {to_own:.1e} |", flush=True)


if __name__ == "__main__":
    main()
