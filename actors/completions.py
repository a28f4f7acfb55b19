"""What becomes of a completion at a hard cap, and where its thought ends: pure functions."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from actors.types import Completion, HardCap
from rewards.base import THINK_CLOSE


def is_cut(completion: Completion, cap: HardCap) -> bool:
    """Whether the cap ends it: it is longer, or just reached the cap without an end of its own."""
    if completion.num_tokens == cap.num_tokens:
        return completion.finish_reason == "length"
    return completion.num_tokens > cap.num_tokens


def join_forced(draft: Completion, answer: Completion, cap: HardCap, decode: Callable[[np.ndarray], str]) -> Completion:
    """One completion of the draft's beginning, the forced text, whose tokens are marked, and the answer.

    Raises RuntimeError when draft and answer are of two policies.
    """
    if (draft.policy_version, draft.adapter_sha256) != (answer.policy_version, answer.adapter_sha256):
        raise RuntimeError(
            f"expected an answer by adapter version {draft.policy_version} ({draft.adapter_sha256[:12]}), got one by "
            f"version {answer.policy_version} ({answer.adapter_sha256[:12]})"
        )
    parts = [draft.token_ids[: cap.num_tokens], cap.forced_token_ids, answer.token_ids]
    token_ids = np.concatenate(parts).astype(np.int32)
    no_logprobs = np.zeros(len(parts[1]), dtype=np.float32)
    own_logprobs = draft.behaviour_logprobs[: cap.num_tokens]
    return replace(
        answer,
        token_ids=token_ids,
        behaviour_logprobs=np.concatenate([own_logprobs, no_logprobs, answer.behaviour_logprobs]),
        forced=np.repeat([False, True, False], [len(part) for part in parts]),
        text=decode(token_ids),
    )


def num_thinking_tokens(token_ids: np.ndarray, text: str, decode: Callable[[np.ndarray], str]) -> int:
    """Length of the shortest beginning `[t]` whose text holds `</think>`; all tokens when the thought stays open.

    Found by bisection: a few decodings however the tokenizer cuts the tag.
    """
    if THINK_CLOSE not in text:
        return len(token_ids)
    low, high = 1, len(token_ids)
    while low < high:
        middle = (low + high) // 2
        if THINK_CLOSE in decode(token_ids[:middle]):
            high = middle
        else:
            low = middle + 1
    return low
