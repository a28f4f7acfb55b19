"""`Engine`: one vLLM engine with adapters that prove which version they are.

An adapter version gets a name, an id and a directory of its own, so loading one needs no pause: requests that
run keep the version they started with. Every completion carries the version and the SHA-256 that its request
was bound to. Token ids go in and come out; text never enters vLLM. With `model.masked_lora` an adapter acts from
each request's `start` on (`actors.kv_sharing`), and the first load proves that this engine does so.
"""

import asyncio
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from actors import adapters, engine_process, kv_sharing
from actors.adapters import Packed
from actors.engine_arguments import engine_arguments
from actors.engine_log import EngineLost, read_cause
from actors.hidden_states import WANTED, StateReader, Wanted
from actors.owned_directory import OwnedDirectory, children_shared_memory
from actors.types import AdapterRef, Sampling
from configs.schema.run import EngineSection, ModelSection

T = TypeVar("T")
MEMORY = Path("/dev/shm")
"""Where adapters are written, if it is there: they are read back at once and thrown away."""
LOOK_EVERY_S = 1.0
"""Whether the engine's process lives, while it is waited for."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Generated:
    """One sampled sequence."""

    token_ids: np.ndarray
    """int32 `[T]`"""
    logprobs: np.ndarray
    """float32 `[T]`, of the sampled tokens"""
    finish_reason: str
    """`stop` or `length`"""
    num_cached_tokens: int
    """Prompt tokens found in the prefix cache; of the request's siblings, by the one that ended last"""


class Engine:
    """Wraps vLLM's AsyncLLM. Create it inside a running event loop."""

    def __init__(
        self,
        *,
        model_path: str,
        stop_token_ids: tuple[int, ...],
        model: ModelSection,
        config: EngineSection,
        num_adapters: int,
        seed: int,
        deterministic: bool = False,
        shares_gpu: bool = False,
    ):
        """`num_adapters`: versions that can run at once; the engine keeps that many loaded. `deterministic`: one
        sequence at a time, since the last bits of a matrix product depend on the rows that are multiplied with it.
        `shares_gpu`: with a learner that works while the engine sleeps.

        Raises RuntimeError when `model.masked_lora` is on and this vLLM cannot do it, and with the cause when vLLM's
        own processes do not start.
        """
        engine_process.prepare(config)
        from vllm import SamplingParams
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.engine.exceptions import EngineDeadError

        if config.num_gpus == 0:
            engine_process.use_fork_server()
        self._dead_error = EngineDeadError
        self._sampling_params, self._lora_request = SamplingParams, LoRARequest
        self._final_only = RequestOutputKind.FINAL_ONLY
        self._stop_token_ids = list(stop_token_ids)
        self._is_asleep, self._num_in_flight = False, 0
        self._is_masked, self._is_masking_proved = model.masked_lora, False
        if model.masked_lora:
            # vLLM loads its plugins when arguments are made; here the answer is wanted before that.
            kv_sharing.register()
            _require_masking(kv_sharing.find_unpatched())
        arguments = AsyncEngineArgs(
            **engine_arguments(
                model_path=model_path,
                model=model,
                config=config,
                num_adapters=num_adapters,
                seed=seed,
                deterministic=deterministic,
                shares_gpu=shares_gpu,
            )
        )
        try:
            self._llm = AsyncLLM.from_engine_args(arguments)
        except Exception as error:  # whatever it is, its cause is in the log
            if cause := read_cause():
                raise RuntimeError(f"vLLM's engine does not start: {cause}") from error
            raise
        self._states = StateReader(
            lambda method, arguments: self._ask(self._llm.collective_rpc(method, args=arguments))
        )
        self._directory = OwnedDirectory("terse-adapters-", MEMORY if os.access(MEMORY, os.W_OK) else None)
        self._directory.adopt(children_shared_memory())
        self._num_adapters = num_adapters
        self._loaded: dict[int, tuple[AdapterRef, Any]] = {}
        self._outdated: list[Any] = []  # to be dropped once no request runs on them
        self._num_running: Counter[int] = Counter()
        self._next_lora_id = 1

    async def load_adapter(self, expected: AdapterRef, packed: Packed) -> AdapterRef:
        """Load an adapter beside those that are there, and say what is loaded.

        The hash in the answer is of the file that vLLM was given, read back from where it lies; engines of one node that
        expect the same hash share that file. Versions beyond `num_adapters` that no request runs on are dropped, oldest
        first. Raises `EngineLost`.
        """
        self._require_awake()
        version = expected.version
        lora_id, self._next_lora_id = self._next_lora_id, self._next_lora_id + 1
        # In threads: requests that end meanwhile are not kept waiting.
        directory = await asyncio.to_thread(
            adapters.write_shared, packed, expected.sha256, f"v{version:06d}-{lora_id}", self._directory
        )
        request = self._lora_request(lora_name=directory.name, lora_int_id=lora_id, lora_path=str(directory))
        ref, _ = await asyncio.gather(
            asyncio.to_thread(adapters.read_ref, directory, version), self._ask(self._llm.add_lora(request))
        )
        if lora_id not in await self._ask(self._llm.list_loras()):
            raise RuntimeError(f"the engine did not take up adapter version {version}")
        if version in self._loaded:
            self._outdated.append(self._loaded.pop(version)[1])
        self._loaded[version] = ref, request
        await self._drop_old_versions()
        if self._is_masked and not self._is_masking_proved:
            await self._prove_masking(version)
            self._is_masking_proved = True
        return ref

    @property
    def loaded(self) -> tuple[AdapterRef, ...]:
        """Every adapter that requests can name, in the order of loading."""
        return tuple(ref for ref, _ in self._loaded.values())

    def adapter(self, version: int) -> AdapterRef:
        """The loaded adapter of that version; RuntimeError when it is not loaded."""
        if version not in self._loaded:
            raise RuntimeError(f"adapter version {version} is not loaded; loaded: {sorted(self._loaded)}")
        return self._loaded[version][0]

    async def generate(
        self, prompt_token_ids: np.ndarray, n: int, sampling: Sampling, version: int | None, start: int = 0
    ) -> list[Generated]:
        """`n` completions of one prompt `[P]` under the adapter of `version` (None: the base model), which acts
        from position `start` on.

        Raises ValueError for a `start` in an engine without `model.masked_lora`.
        """
        params = self._sampling_params(
            n=n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            max_tokens=sampling.max_tokens,
            stop_token_ids=[] if sampling.ignore_end else self._stop_token_ids,
            ignore_eos=sampling.ignore_end,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=self._final_only,
            seed=sampling.seed,
            # A prompt is computed the same way whether or not it was seen before.
            skip_reading_prefix_cache=True if sampling.seed is not None else None,
            extra_args=self._extra_args(start, version),
        )
        final = await self._run(prompt_token_ids, params, version)
        if len(final.outputs) != n:
            raise RuntimeError(f"expected {n} completions, got {len(final.outputs)}")
        num_cached = final.num_cached_tokens or 0
        return [_to_generated(output, num_cached) for output in sorted(final.outputs, key=lambda output: output.index)]

    async def pool_prompt(self, prompt_token_ids: np.ndarray, chunk_tokens: int, ema_alpha: float) -> np.ndarray:
        """EMA-pooled final-norm states of a prompt in the base model, float32 `[H]` (`actors.heads.EmaPooler`).

        One prefill; its full blocks are in the cache for whatever the prompt is asked next. Blocks that are there
        already are computed again: their states are needed.
        """
        wanted = Wanted(key=uuid.uuid4().hex, kind="pooled", chunk_tokens=chunk_tokens, ema_alpha=ema_alpha)
        return await self._run_for_states(prompt_token_ids, wanted, None, 0)

    async def last_state(self, token_ids: np.ndarray, version: int | None, start: int = 0) -> np.ndarray:
        """Final-norm state of the last token, float32 `[H]`, under the adapter of `version` from `start` on.

        Computes what the cache does not hold: after a completion with the same version and `start`, its tail.
        """
        return await self._run_for_states(token_ids, Wanted(key=uuid.uuid4().hex, kind="last"), version, start)

    async def _run_for_states(
        self, token_ids: np.ndarray, wanted: Wanted, version: int | None, start: int
    ) -> np.ndarray:
        await self._states.start()
        params = self._sampling_params(
            temperature=0.0,
            max_tokens=1,
            detokenize=False,
            output_kind=self._final_only,
            skip_reading_prefix_cache=wanted.kind == "pooled",
            extra_args={WANTED: wanted.as_args(), **(self._extra_args(start, version) or {})},
        )
        await self._run(token_ids, params, version)
        return await self._states.read(wanted.key)

    def _extra_args(self, start: int, version: int | None) -> dict[str, Any] | None:
        if start and not self._is_masked:
            raise ValueError(f"start: expected 0 without model.masked_lora, got {start}")
        return {kv_sharing.START: start} if start and version is not None else None

    async def _run(self, prompt_token_ids: np.ndarray, params: Any, version: int | None) -> Any:
        """vLLM's final output of one request."""
        self._require_awake()
        prompt: Any = {"prompt_token_ids": prompt_token_ids.tolist()}
        lora_request = None
        if version is not None:
            self.adapter(version)
            lora_request = self._loaded[version][1]
            self._num_running[lora_request.lora_int_id] += 1
        final = None
        self._num_in_flight += 1
        try:
            async for output in self._llm.generate(prompt, params, uuid.uuid4().hex, lora_request=lora_request):
                final = output
        except self._dead_error as error:
            raise EngineLost(f"vLLM's engine is dead: {read_cause() or error}") from error
        finally:
            self._num_in_flight -= 1
            if lora_request is not None:
                self._num_running[lora_request.lora_int_id] -= 1
        if final is None:
            raise RuntimeError("expected a finished request, the engine ended it without an output")
        return final

    async def ping(self) -> None:
        """Return when the engine's own loop has answered, between two of its steps. Raises `EngineLost`."""
        await self._ask(self._llm.is_sleeping())

    async def sleep(self) -> None:
        """Let running requests end, then give the GPU's memory back: weights wait in host memory, the cache is emptied.

        Until `wake_up` every request is refused. Raises `EngineLost`. A CPU engine keeps its memory.
        """
        if self._is_asleep:
            return
        self._is_asleep = True
        while self._num_in_flight:
            await asyncio.sleep(0.01)
        await self._ask(self._llm.sleep(level=1, mode="wait"))

    async def wake_up(self) -> None:
        """Take the memory again; adapters are what they were. Raises `EngineLost`."""
        if self._is_asleep:
            await self._ask(self._llm.wake_up())
            self._is_asleep = False

    def _require_awake(self) -> None:
        if self._is_asleep:
            raise RuntimeError("the engine sleeps while the learner works: wake it up first")

    async def _ask(self, call: Awaitable[T]) -> T:
        """What the engine's process answers to a call that is no request.

        vLLM leaves such a call pending for good when that process dies meanwhile, so its death is looked for.
        """
        task = asyncio.ensure_future(call)
        while not task.done():
            await asyncio.wait([task], timeout=LOOK_EVERY_S)
            if self._llm.errored:
                error = None if task.cancel() else task.exception()
                raise EngineLost(
                    f"vLLM's engine is dead: {read_cause() or error or 'it ended during a call'}"
                ) from error
        return task.result()

    async def _prove_masking(self, version: int) -> None:
        """Every worker has the plugin, and a reasoning request takes over the blocks of a base request."""
        for problem in await self._ask(self._llm.collective_rpc("find_unpatched_worker")):
            _require_masking(problem)
        block = self._llm.vllm_config.cache_config.block_size
        num_tokens = min(2 * block + 1, self._llm.model_config.max_model_len - 1)
        num_shared = (num_tokens - 1) // block * block
        if num_shared == 0:
            return
        vocabulary = self._llm.model_config.get_vocab_size()
        prompt = np.random.default_rng(0).integers(0, vocabulary, num_tokens)
        sampling = Sampling(temperature=0.0, max_tokens=1)
        await self.generate(prompt, 1, sampling, version=None)
        (reasoning,) = await self.generate(prompt, 1, sampling, version, start=num_tokens - 1)
        if reasoning.num_cached_tokens != num_shared:
            _require_masking(
                f"a reasoning request after a base request on the same {num_tokens} tokens found "
                f"{reasoning.num_cached_tokens} of them cached, expected {num_shared}"
            )

    async def _drop_old_versions(self) -> None:
        """Remove adapters beyond `num_adapters`, and those loaded anew, that no request runs on: vLLM may read a
        directory again while one does."""
        for version in list(self._loaded)[: max(0, len(self._loaded) - self._num_adapters)]:
            if not self._num_running[self._loaded[version][1].lora_int_id]:
                self._outdated.append(self._loaded.pop(version)[1])
        for request in [request for request in self._outdated if not self._num_running[request.lora_int_id]]:
            self._outdated.remove(request)
            del self._num_running[request.lora_int_id]
            await self._ask(self._llm.remove_lora(request.lora_int_id))
            shutil.rmtree(request.lora_path, ignore_errors=True)

    async def shutdown(self) -> None:
        """Stop vLLM, in the event loop that it runs in: its sockets are closed there, and an open one blocks when it is collected."""
        self._llm.shutdown()
        self._directory.remove()


def _require_masking(problem: str | None) -> None:
    if problem is not None:
        raise RuntimeError(
            f"model.masked_lora needs vLLM to be patched, and it is not: {problem}. Install the vLLM of the "
            "constraints file, or set model.masked_lora=false (an ordinary LoRA; nothing shared with the base)"
        )


def _to_generated(output: Any, num_cached_tokens: int) -> Generated:
    if output.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"expected a finished completion, got finish_reason {output.finish_reason!r}")
    return Generated(
        token_ids=np.asarray(output.token_ids, dtype=np.int32),
        # One entry per position when logprobs=0: the sampled token's own.
        logprobs=np.asarray(output.logprobs.logprobs, dtype=np.float32),
        finish_reason=output.finish_reason,
        num_cached_tokens=num_cached_tokens,
    )
