"""The inference actor: one prompt, N completions, in base or reasoning mode or as the switcher decides, verified.

Base and reasoning requests share one engine, and with `model.masked_lora` the prompt's blocks: the switcher reads the
prefill, whichever mode follows takes over its full blocks, and the N completions share them. The verifier reads one
state per completion, in its own mode, so all full blocks of prompt and completion are taken over too.
"""

import asyncio
import time
from functools import cached_property

import numpy as np

from actors.adapters import sha256
from actors.engine import Sampling
from actors.heads import Heads, unpack_heads
from actors.rollout import BASE_VERSION, RolloutActor
from actors.types import AdapterRef, Completion, HardCap, Inference, Prompt, Reads

BASE, REASONING, SWITCHED = "base", "reasoning", "switched"
MODES = (BASE, REASONING, SWITCHED)


class InferenceActor(RolloutActor):
    """A rollout actor that also reads hidden states. A plain async class; `orchestrator.cluster.cluster` makes it a Ray actor."""

    _heads: Heads | None = None

    async def load_heads(self, packed: bytes) -> str:
        """Score with these heads (`actors.heads.pack_heads`) from now on; answers with the hash of the bytes."""
        self._heads = unpack_heads(packed)
        return sha256(packed)

    async def bring_up(  # type: ignore[override]
        self, versions: tuple[int, ...], heads: bytes | None, *packed: bytes
    ) -> tuple[tuple[AdapterRef, ...], str]:
        """See `RolloutActor.bring_up`; with the heads, if there are any, whose hash it answers with."""
        loaded = await super().bring_up(versions, *packed)
        return loaded, "" if heads is None else await self.load_heads(heads)

    async def infer(
        self,
        prompt: Prompt,
        n: int,
        sampling: Sampling,
        version: int,
        mode: str,
        reads: Reads | None = None,
        cap: HardCap | None = None,
        drafts: tuple[Completion, ...] | None = None,
    ) -> Inference:
        """`n` completions by the base, by adapter `version`, or by whichever the switcher chooses; n = 0 is only that.

        `cap` and `drafts` as for `generate`. Raises ValueError for another mode, and for `switched` without heads or
        without reading the prompt.
        """
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
            score = float(self._heads.switcher.scores(state[None])[0])
            if mode == SWITCHED:
                mode = REASONING if self._heads.needs_reasoning(score) else BASE
        switch_s = clock.lap()
        adapter_version = version if mode == REASONING else BASE_VERSION
        completions = await self.generate(prompt, n, sampling, adapter_version, cap, drafts) if n else ()
        generate_s = clock.lap()
        states, verified = None, None
        if reads is not None and reads.completions and n:
            states = await self._read_completions(prompt, completions, adapter_version, reads.verification_prompt)
            if self._heads is not None:
                verified = tuple(float(value) for value in self._heads.verifier.scores(states))
        return Inference(
            mode=mode,
            completions=completions,
            switcher_score=score,
            verifier_scores=verified,
            prompt_state=state if reads is not None and reads.keeps_states else None,
            completion_states=states if reads is not None and reads.keeps_states else None,
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
