"""The rollout actor: prompts in, stamped completions out."""

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from actors import adapters
from actors.engine import Engine, Generated, Sampling
from actors.hub import local_model
from actors.tokenizer import load_tokenizer, stop_token_ids
from actors.types import AdapterRef, Completion, HardCap, Prompt
from configs.schema.run import EngineSection, ModelSection
from rewards.base import THINK_CLOSE

BASE_VERSION = -1
"""Stands in a completion's `policy_version` when no adapter was on."""


class RolloutActor:
    """One engine with its tokenizer. A plain async class; `orchestrator.cluster.cluster` makes it a Ray actor."""

    def __init__(
        self,
        *,
        model_path: str,
        model: ModelSection,
        engine: EngineSection,
        num_adapters: int,
        seed: int,
        counts_thinking: bool = False,
        deterministic: bool = False,
        shares_gpu: bool = False,
        environment: Mapping[str, str] | None = None,
    ):
        """`counts_thinking`: completions say where their thought ends, which takes some decoding. `deterministic` and
        `shares_gpu`: see `Engine`. `environment`: variables for this process."""
        self._deterministic, self._shares_gpu = deterministic, shares_gpu
        self._counts_thinking = counts_thinking
        os.environ.update(environment or {})
        self._model_path, self._model, self._engine_config = model_path, model, engine
        self._num_adapters, self._seed = num_adapters, seed
        self._engine: Any = None

    async def start(self) -> None:
        """Load tokenizer and engine (tens of seconds). Separate from the constructor: vLLM needs the event loop."""
        self._model_path = local_model(self._model_path, self._model)
        self._tokenizer: Any = load_tokenizer(self._model_path, self._model)
        self._engine = Engine(
            model_path=self._model_path,
            stop_token_ids=stop_token_ids(self._model_path, self._tokenizer),
            model=self._model,
            config=self._engine_config,
            num_adapters=self._num_adapters,
            seed=self._seed,
            deterministic=self._deterministic,
            shares_gpu=self._shares_gpu,
        )

    async def bring_up(self, versions: tuple[int, ...], *packed: bytes) -> tuple[AdapterRef, ...]:
        """Start unless that was done before, and load those of these adapters that are not there, oldest first.

        Answers with what the engine holds now.
        """
        if self._engine is None:
            await self.start()
        for version, one in zip(versions, packed, strict=True):
            if adapters.make_ref(one, version) not in self._engine.loaded:
                await self._engine.load_adapter(one, version)
        return self._engine.loaded

    async def ping(self) -> None:
        """Return when the engine has shown that it is alive; it may be busy."""
        await self._engine.ping()

    async def sleep(self) -> None:
        """Give the GPU to the learner, once running requests have ended; see `Engine.sleep`."""
        await self._engine.sleep()

    async def wake_up(self) -> None:
        await self._engine.wake_up()

    async def load_adapter(self, packed: bytes, version: int) -> AdapterRef:
        """Load one version beside the others; answers with what the engine holds now."""
        return await self._engine.load_adapter(packed, version)

    async def generate(
        self,
        prompt: Prompt,
        n: int,
        sampling: Sampling,
        version: int = BASE_VERSION,
        cap: HardCap | None = None,
        drafts: tuple[Completion, ...] | None = None,
    ) -> tuple[Completion, ...]:
        """`n` completions of one prompt by adapter `version`, or by the base.

        With a cap, those that reach it are cut there and made to answer. With `drafts`, completions of this prompt
        by this version that were sampled before, nothing but that is generated: a prefix of a sampled completion is
        a sampled completion.
        """
        if drafts is None:
            limit = sampling if cap is None else replace(sampling, max_tokens=min(sampling.max_tokens, cap.num_tokens))
            drafts = await self._sample(prompt, n, limit, version)
        if cap is None:
            return drafts
        return tuple(
            await asyncio.gather(
                *[
                    self._force_answer(prompt, draft, shifted(sampling, n + place), version, cap)
                    if is_cut(draft, cap)
                    else _itself(draft)
                    for place, draft in enumerate(drafts)
                ]
            )
        )

    async def generate_group(self, *request: Any) -> tuple[tuple[Completion, ...], int]:
        """What `generate` returns, and how many: who waits for the number need not fetch the completions."""
        completions = await self.generate(*request)
        return completions, len(completions)

    async def _force_answer(
        self, prompt: Prompt, draft: Completion, sampling: Sampling, version: int, cap: HardCap
    ) -> Completion:
        """The draft up to the cap, the forced text, and what the policy answers then."""
        own, forced = draft.token_ids[: cap.num_tokens], cap.forced_token_ids
        longer = replace(prompt, token_ids=np.concatenate([prompt.token_ids, own, forced]).astype(np.int32))
        (answer,) = await self._sample(longer, 1, replace(sampling, max_tokens=cap.answer_tokens), version)
        joined = join_forced(draft, answer, cap, self._decode)
        return replace(joined, num_thinking_tokens=self._num_thinking(joined.token_ids, joined.text))

    async def _sample(self, prompt: Prompt, n: int, sampling: Sampling, version: int) -> tuple[Completion, ...]:
        adapter = None if version == BASE_VERSION else self._engine.adapter(version)
        generated = await self._engine.generate(
            prompt.token_ids, n, sampling, None if adapter is None else adapter.version, prompt.start
        )
        texts = self._tokenizer.batch_decode([g.token_ids for g in generated], skip_special_tokens=True)
        return tuple(
            _stamp(g, text, adapter, self._num_thinking(g.token_ids, text))
            for g, text in zip(generated, texts, strict=True)
        )

    def _num_thinking(self, token_ids: np.ndarray, text: str) -> int:
        return num_thinking_tokens(token_ids, text, self._decode) if self._counts_thinking else len(token_ids)

    def _decode(self, token_ids: np.ndarray) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)

    async def shutdown(self) -> None:
        await self._engine.shutdown()


def shifted(sampling: Sampling, places: int) -> Sampling:
    """With another seed, if it has one: not that of the completions before."""
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + places)


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


async def _itself(draft: Completion) -> Completion:
    return draft


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


def _stamp(generated: Generated, text: str, adapter: AdapterRef | None, num_thinking: int) -> Completion:
    return Completion(
        token_ids=generated.token_ids,
        behaviour_logprobs=generated.logprobs,
        forced=np.zeros(len(generated.token_ids), dtype=bool),
        text=text,
        finish_reason=generated.finish_reason,
        policy_version=BASE_VERSION if adapter is None else adapter.version,
        adapter_sha256="" if adapter is None else adapter.sha256,
        num_thinking_tokens=num_thinking,
    )
