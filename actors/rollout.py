"""The rollout actor: prompts in, stamped completions out."""

from typing import Any

import numpy as np

from actors.engine import Engine, Generated, Sampling
from actors.tokenizer import load_tokenizer, stop_token_ids
from actors.types import AdapterRef, Completion, Prompt
from configs.schema import EngineSection, ModelSection

BASE_VERSION = -1
"""Stands in a completion's `policy_version` when no adapter was on."""


class RolloutActor:
    """One engine with its tokenizer. A plain async class; `orchestrator.cluster` makes it a Ray actor."""

    def __init__(
        self,
        *,
        model_path: str,
        model: ModelSection,
        engine: EngineSection,
        num_adapters: int,
        seed: int,
    ):
        self._model_path, self._model, self._engine_config = model_path, model, engine
        self._num_adapters, self._seed = num_adapters, seed

    async def start(self) -> None:
        """Load tokenizer and engine (tens of seconds). Separate from the constructor: vLLM needs the event loop."""
        self._tokenizer: Any = load_tokenizer(self._model_path, self._model)
        self._engine = Engine(
            model_path=self._model_path,
            stop_token_ids=stop_token_ids(self._model_path, self._tokenizer),
            model=self._model,
            config=self._engine_config,
            num_adapters=self._num_adapters,
            seed=self._seed,
        )

    async def load_adapter(self, packed: bytes, version: int) -> AdapterRef:
        """Load one version beside the others; answers with what the engine holds now."""
        return await self._engine.load_adapter(packed, version)

    async def generate(
        self, prompt: Prompt, n: int, sampling: Sampling, version: int = BASE_VERSION
    ) -> tuple[Completion, ...]:
        """`n` completions of one prompt by adapter `version`, or by the base."""
        adapter = None if version == BASE_VERSION else self._engine.adapter(version)
        generated = await self._engine.generate(
            prompt.token_ids, n, sampling, None if adapter is None else adapter.version, prompt.start
        )
        texts = self._tokenizer.batch_decode([g.token_ids for g in generated], skip_special_tokens=True)
        return tuple(_stamp(g, text, adapter) for g, text in zip(generated, texts, strict=True))

    async def shutdown(self) -> None:
        self._engine.shutdown()


def _stamp(generated: Generated, text: str, adapter: AdapterRef | None) -> Completion:
    return Completion(
        token_ids=generated.token_ids,
        behaviour_logprobs=generated.logprobs,
        forced=np.zeros(len(generated.token_ids), dtype=bool),
        text=text,
        finish_reason=generated.finish_reason,
        policy_version=BASE_VERSION if adapter is None else adapter.version,
        adapter_sha256="" if adapter is None else adapter.sha256,
    )
