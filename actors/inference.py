"""The inference actor: one engine with its tokenizer; prompts in, stamped completions out, for training and evaluation.

A request is answered in base or reasoning mode or as the switcher decides, and its completions may be verified. All
share one engine, and with `model.masked_lora` the prompt's blocks: the switcher reads the prefill, whichever mode
follows takes over its full blocks, and the N completions share them. The verifier reads one state per completion, in
its own mode, so all full blocks of prompt and completion are taken over too.
"""

import asyncio
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from actors import adapters, engine_process
from actors.adapters import Packed
from actors.completions import is_cut, join_forced, num_thinking_tokens
from actors.heads import Heads, unpack_heads
from actors.hub import local_model
from actors.tokenizer import load_tokenizer, stop_token_ids
from actors.types import (
    BASE,
    BASE_VERSION,
    MODES,
    REASONING,
    SWITCHED,
    AdapterRef,
    Completion,
    HardCap,
    Inference,
    Prompt,
    Request,
    Sampling,
)
from configs.schema.run import EngineSection, ModelSection

if TYPE_CHECKING:
    from actors.engine import Generated


class InferenceActor:
    """A plain async class; `orchestrator.cluster` makes it a Ray actor."""

    _heads: Heads | None = None

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
        engine_process.prepare(self._engine_config)
        from actors.engine import Engine  # and torch, which the driver, who asks for this actor, does not need

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

    async def bring_up(
        self, expected: tuple[AdapterRef, ...], heads: bytes | None, *packed: Packed
    ) -> tuple[tuple[AdapterRef, ...], str]:
        """Start unless that was done before, and load the heads, if there are any, and those of these adapters that are
        not there, oldest first.

        Answers with the adapters that the engine holds now and the hash of the heads.
        """
        if self._engine is None:
            await self.start()
        for ref, one in zip(expected, packed, strict=True):
            if ref not in self._engine.loaded:
                await self._engine.load_adapter(ref, one)
        return self._engine.loaded, "" if heads is None else await self.load_heads(heads)

    async def ping(self) -> None:
        """Return when the engine has shown that it is alive; it may be busy."""
        await self._engine.ping()

    async def sleep(self) -> None:
        """Give the GPU to the learner, once running requests have ended; see `Engine.sleep`."""
        await self._engine.sleep()

    async def wake_up(self) -> None:
        await self._engine.wake_up()

    async def load_adapter(self, expected: AdapterRef, packed: Packed) -> AdapterRef:
        """Load one version beside the others; answers with what the engine holds now."""
        return await self._engine.load_adapter(expected, packed)

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

    async def load_heads(self, packed: bytes) -> str:
        """Score with these heads (`actors.heads.pack_heads`) from now on; answers with the hash of the bytes."""
        self._heads = unpack_heads(packed)
        return adapters.sha256(packed)

    async def infer(
        self, request: Request, drafts: tuple[Completion, ...] | None = None
    ) -> tuple[tuple[Completion, ...], Inference]:
        """`n` completions by the base, by the request's adapter, or by whichever the switcher chooses, and how it went:
        who waits for the second need not fetch the first.

        `drafts` as for `generate`. Raises ValueError for another mode, and for `switched` without heads or without
        reading the prompt.
        """
        prompt, reads, mode = request.prompt, request.reads, request.mode
        if mode not in MODES:
            raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
        if mode == SWITCHED and (self._heads is None or reads is None or not reads.prompt):
            raise ValueError(f"mode {SWITCHED}: expected heads that are loaded and a prompt that is read")
        clock = _Clock()
        state, score = None, None
        if reads is not None and reads.prompt:
            state = await self._engine.pool_prompt(prompt.token_ids, reads.chunk_tokens, reads.ema_alpha)
        prefill_s = clock.lap()
        if state is not None and self._heads is not None:
            score = self._heads.switcher_probability(state)
            if mode == SWITCHED:
                mode = REASONING if self._heads.needs_reasoning(score) else BASE
        switch_s = clock.lap()
        version = request.version if mode == REASONING else BASE_VERSION
        completions: tuple[Completion, ...] = ()
        if request.n:
            completions = await self.generate(prompt, request.n, request.sampling, version, request.cap, drafts)
        generate_s = clock.lap()
        states, verified = None, None
        if reads is not None and reads.completions and completions:
            states = await self._read_completions(prompt, completions, version, reads.verification_prompt)
            if self._heads is not None:
                verified = tuple(float(value) for value in self._heads.verifier.scores(states))
        keeps_states = reads is not None and reads.keeps_states
        return completions, Inference(
            mode=mode,
            switcher_score=score,
            verifier_scores=verified,
            prompt_state=state if keeps_states else None,
            completion_states=states if keeps_states else None,
            prefill_s=prefill_s,
            switch_s=switch_s,
            generate_s=generate_s,
            verify_s=clock.lap(),
        )

    async def _read_completions(
        self, prompt: Prompt, completions: tuple[Completion, ...], version: int, verification_prompt: str
    ) -> np.ndarray:
        """float32 `[N, H]`: the state of the last token of prompt, completion (with its end token) and verification
        prompt, under the adapter that made the completion."""
        appended = self._verification_ids(verification_prompt)
        rows = [np.concatenate([prompt.token_ids, completion.token_ids, appended]) for completion in completions]
        adapter = None if version == BASE_VERSION else version
        return np.stack(await asyncio.gather(*[self._engine.last_state(row, adapter, prompt.start) for row in rows]))

    def _verification_ids(self, text: str) -> np.ndarray:
        if text not in self._ids_of_texts:
            token_ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            if not token_ids or self._tokenizer.unk_token_id in token_ids:
                raise ValueError(
                    f"heads.verification_prompt: expected text that the model has tokens for, found {text!r}"
                )
            self._ids_of_texts[text] = np.asarray(token_ids, dtype=np.int32)
        return self._ids_of_texts[text]

    @cached_property
    def _ids_of_texts(self) -> dict[str, np.ndarray]:
        return {}


class _Clock:
    """Seconds from lap to lap."""

    def __init__(self) -> None:
        self._last_s = time.perf_counter()

    def lap(self) -> float:
        last_s, self._last_s = self._last_s, time.perf_counter()
        return self._last_s - last_s


def shifted(sampling: Sampling, places: int) -> Sampling:
    """The same sampling with the seed moved on, if it has one: siblings must not share theirs."""
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + places)


async def _itself(draft: Completion) -> Completion:
    return draft


def _stamp(generated: "Generated", text: str, adapter: AdapterRef | None, num_thinking: int) -> Completion:
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
