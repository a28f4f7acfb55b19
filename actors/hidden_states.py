"""Hidden states for the heads, taken from the forward passes that an engine makes anyway.

A worker sees the final-norm states of every token it computes. Two kinds of request want something of them:

    pooled   the states of the prompt, EMA-pooled over chunks (the switcher's feature)
    last     the state of the last prompt token (the verifier's feature)

Requests say so in `SamplingParams.extra_args`, under a key of their own. Positions come from the scheduler's own
account of each step, so chunked prefill, other requests in the batch and preemption (a request is computed again
from 0) make no difference. Tokens found in the prefix cache are not computed: the last prompt token always is, and
a pooled request is sent with `skip_reading_prefix_cache`.

What a worker keeps: for a running request that pools two vectors, for a finished one its result until it is taken.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from actors import kv_sharing
from actors.heads import EmaPooler

WANTED = "terse_states"
"""Key in `SamplingParams.extra_args`; the value is `Wanted.as_args()`."""
MAX_RESULTS = 8192
"""Results kept of requests that nobody asks about any more, because they were given up; the oldest go first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a request wants of the states of its prompt."""

    key: str
    """By which the result is asked for."""
    kind: Literal["pooled", "last"]
    chunk_tokens: int = 1
    """Pooled: see `EmaPooler`."""
    ema_alpha: float = 1.0

    def as_args(self) -> list[Any]:
        """Plain values: they pass through vLLM's messages."""
        return [self.key, self.kind, self.chunk_tokens, self.ema_alpha]

    @classmethod
    def of(cls, sampling_params: Any) -> "Wanted | None":
        args = (getattr(sampling_params, "extra_args", None) or {}).get(WANTED)
        if args is None:
            return None
        key, kind, chunk_tokens, ema_alpha = args
        return cls(key=key, kind=kind, chunk_tokens=chunk_tokens, ema_alpha=ema_alpha)


class StateCollector:
    """What one worker gathers, step by step."""

    def __init__(self) -> None:
        self._wanted: dict[str, tuple[Wanted, int]] = {}
        """Running request → what it wants, and its number of prompt tokens."""
        self._pools: dict[str, EmaPooler] = {}
        self._results: OrderedDict[str, Tensor | None] = OrderedDict()

    @property
    def is_idle(self) -> bool:
        return not self._wanted

    def begin_step(self, scheduler_output: Any) -> dict[str, int]:
        """Take note of requests that come and go; returns running request → position of its first token in this step.

        Call it before the step is computed: the runner may change the account meanwhile.
        """
        for req_id in scheduler_output.finished_req_ids:
            self._forget(req_id)
        for new in scheduler_output.scheduled_new_reqs:
            wanted = Wanted.of(new.sampling_params)
            if wanted is not None:
                self._wanted[new.req_id] = wanted, len(new.prompt_token_ids)
        if self.is_idle:
            return {}
        cached = scheduler_output.scheduled_cached_reqs
        positions = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        return positions | {new.req_id: new.num_computed_tokens for new in scheduler_output.scheduled_new_reqs}

    def end_step(
        self, req_ids: list[str], num_scheduled: dict[str, int], positions: dict[str, int], states: Tensor
    ) -> None:
        """Take what is wanted of the step's states `[tokens, H]`, where requests stand one after the other in the
        order of `req_ids`, each with `num_scheduled` tokens from its position on."""
        row = 0
        for req_id in req_ids:
            count = num_scheduled[req_id]
            if req_id in self._wanted:
                self._observe(req_id, positions[req_id], states[row : row + count])
            row += count

    def take(self, keys: list[str]) -> list[bytes]:
        """fp32 `[H]` of each key, as bytes; empty for one that has none. They are forgotten then."""
        found = [self._results.pop(key, None) for key in keys]
        there = [state for state in found if state is not None]
        arrays = iter(torch.stack(there).cpu().numpy() if there else ())
        return [b"" if state is None else next(arrays).tobytes() for state in found]

    def _observe(self, req_id: str, position: int, states: Tensor) -> None:
        wanted, num_prompt = self._wanted[req_id]
        if wanted.kind == "last":
            if position <= num_prompt - 1 < position + len(states):
                self._finish(req_id, wanted, states[num_prompt - 1 - position].float().clone())
            return
        if position == 0:
            self._pools[req_id] = EmaPooler(wanted.chunk_tokens, wanted.ema_alpha)
        pool = self._pools.get(req_id)
        if pool is None or pool.num_seen != position:
            self._finish(req_id, wanted, None)  # something before it was not computed here
            return
        pool.add(states[: num_prompt - position].float())
        if pool.num_seen == num_prompt:
            self._finish(req_id, wanted, pool.result())

    def _finish(self, req_id: str, wanted: Wanted, state: Tensor | None) -> None:
        self._results[wanted.key] = state
        while len(self._results) > MAX_RESULTS:
            self._results.popitem(last=False)
        self._forget(req_id)

    def _forget(self, req_id: str) -> None:
        self._wanted.pop(req_id, None)
        self._pools.pop(req_id, None)


class WorkerExtension(kv_sharing.WorkerExtension):
    """Methods that vLLM adds to its workers, called by `collective_rpc`."""

    model_runner: Any

    def watch_states(self) -> str | None:
        """Begin to gather states; why that is not possible, in one line, or None. Idempotent."""
        runner = self.model_runner
        if hasattr(runner, "terse_states"):
            return None
        if not hasattr(runner, "execute_model_state"):
            return f"expected a model runner that keeps the states of a step, found {type(runner).__qualname__}"
        runner.terse_states = StateCollector()
        runner.execute_model = _watched(runner, runner.execute_model)
        return None

    def take_states(self, keys: list[str]) -> list[bytes]:
        """See `StateCollector.take`."""
        return self.model_runner.terse_states.take(keys)


def _watched(runner: Any, execute_model: Any) -> Any:
    """The runner's `execute_model`, which leaves the step's states for the sampler, and for the collector."""

    def watch(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        collector: StateCollector = runner.terse_states
        positions = collector.begin_step(scheduler_output)
        num_scheduled = scheduler_output.num_scheduled_tokens
        output = execute_model(scheduler_output, *args, **kwargs)
        step = runner.execute_model_state
        if step is not None and not collector.is_idle:
            # vLLM's second model runner keeps the batch with the step, the first one with itself.
            batch = getattr(step, "input_batch", None) or runner.input_batch
            collector.end_step(list(batch.req_ids), num_scheduled, positions, step.hidden_states)
        return output

    return watch


class StateReader:
    """The front end's side: fetches results of requests that have ended, all that wait in one call."""

    def __init__(self, call_workers: Callable[[str, tuple[Any, ...]], Awaitable[list[Any]]]):
        """`call_workers(method, arguments)` answers with one result per worker (`collective_rpc`)."""
        self._call_workers = call_workers
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        self._fetching: asyncio.Task[None] | None = None
        self._starting: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Before the first request that wants states. Raises RuntimeError when this vLLM cannot gather them."""
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._start())
        await asyncio.shield(self._starting)

    async def read(self, key: str) -> np.ndarray:
        """float32 `[H]`. Raises RuntimeError when the workers have nothing under this key."""
        future = self._waiting[key] = asyncio.get_running_loop().create_future()
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.ensure_future(self._fetch())
        data = await future
        if not data:
            raise RuntimeError("expected the hidden states of a whole prompt, the engine did not compute all of it")
        return np.frombuffer(data, dtype=np.float32)

    async def _start(self) -> None:
        for problem in await self._call_workers("watch_states", ()):
            if problem is not None:
                raise RuntimeError(f"this vLLM does not give its hidden states: {problem}")

    async def _fetch(self) -> None:
        while waiting := {key: future for key, future in self._waiting.items() if not future.done()}:
            # Requests that end while a call is on its way go with the next one.
            try:
                found, *_ = await self._call_workers("take_states", (list(waiting),))  # equal on every worker
            except Exception as error:
                for key, future in waiting.items():
                    self._waiting.pop(key)
                    future.set_exception(error)
                continue
            for (key, future), data in zip(waiting.items(), found, strict=True):
                self._waiting.pop(key)
                if not future.cancelled():
                    future.set_result(data)
