"""An export, opened and asked: prefill by the base, the switcher's choice, N completions, verifier, vote.

The prompt is computed once, without the adapter. In reasoning mode the last prompt token is computed again with the
adapter on, over the same KV cells (`start = prompt_len - 1`): that is all that switching costs.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from actors.heads import EmaPooler, Heads
from deploy.device.chat import Chat
from deploy.device.decoding import (
    EMBEDDING_BATCH,
    Growing,
    Limits,
    Sampling,
    decode_sequences,
    verification_states,
)
from deploy.device.heads import read_heads
from deploy.device.llama import KvType, LlamaContext, LlamaModel
from deploy.device.voting import answer_key, vote
from deploy.manifest import (
    ADAPTER_FILE,
    BASE_FILE,
    HEADS_FILE,
    MANIFEST_FILE,
    TOKENIZER_DIR,
    ExportError,
    check_files,
    read_manifest,
)
from deploy.manifest_rules import MAX_TEMPERATURE, is_temperature

Mode = Literal["auto", "base", "reasoning"]
BATCH_TOKENS = 512
MAX_SEQUENCES = 64
MAX_THREADS = 1024
SMALL_BASE_BYTES = 16 << 20
"""A smaller base is computed by one thread: a second one waits longer for the first than it computes."""
OnEvent = Callable[[str, Any], None]
"""`("mode", (mode, probability or None))` once; then `("text", (number of the completion, text))`."""


class PromptError(ValueError):
    """A request that this export cannot answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question."""

    question: str
    mode: Mode = "auto"
    """auto: the switcher's choice; reasoning when the export has no switcher"""
    num_completions: int = 1
    cap: int | None = None
    """Tokens after which an answer is forced; 0 is none, None is the export's own"""
    budget_tokens: int | None = None
    """Named in the prompt; 0 names none, None is the middle one of the export's"""
    temperature: float | None = None
    """None: the export's own"""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCompletion:
    text: str
    answer: str
    """As it is compared in the vote; empty when there is none"""
    token_ids: tuple[int, ...]
    num_forced: int
    finish_reason: str
    score: float | None
    """The verifier's; None without one"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a question came to."""

    mode: str
    """`base` or `reasoning`"""
    switcher_probability: float | None
    """That reasoning is needed; None when the switcher was not asked"""
    answer: str
    chosen: int | None
    """The completion that the answer was voted to; None when none has an answer"""
    completions: tuple[DeviceCompletion, ...]
    num_prompt_tokens: int
    timings: dict[str, float] = field(default_factory=dict)
    """`prefill_s`, `switch_s`, `first_token_s` (from the question to the first token), `decode_s`, `verify_s`,
    `tokens_per_s` (all completions together)"""

    @property
    def text(self) -> str:
        return self.completions[self.chosen or 0].text


class DeviceModel:
    """An export in memory. Close it, or use it as a context manager."""

    def __init__(self, directory: Path | str, num_threads: int = 0, kv_type: KvType = "f16") -> None:
        """`num_threads` 0: one for each core this process may use, or one for a small base. Raises ExportError, naming
        the file, for an export that is damaged or does not fit together, PromptError for another number of threads."""
        if not 0 <= num_threads <= MAX_THREADS:
            raise PromptError(f"threads: expected from 0 to {MAX_THREADS}, found {num_threads}")
        directory = Path(directory)
        self.manifest = read_manifest(directory)
        check_files(directory, self.manifest)
        self.chat = Chat(directory / TOKENIZER_DIR)
        is_small = (directory / BASE_FILE).stat().st_size < SMALL_BASE_BYTES
        self.num_threads = num_threads or (1 if is_small else _num_cores())
        self._kv_type: KvType = kv_type
        self._context: LlamaContext | None = None
        self.model = LlamaModel(directory / BASE_FILE, directory / ADAPTER_FILE)
        self.heads: Heads | None = None
        try:
            if HEADS_FILE in self.manifest.files:
                self.heads = read_heads(directory / HEADS_FILE, self.manifest.base_sha256, self.model.hidden_size)
                self._suffix = self.chat.encode(self.heads.verification_prompt)
            self._check_fit(directory / MANIFEST_FILE)
        except ExportError:
            self.model.close()
            raise

    def _check_fit(self, path: Path) -> None:
        """Raises ExportError for values of the manifest that are not of this base and these heads."""
        manifest, num_tokens = self.manifest, self.model.num_tokens
        for key in ("stop_token_ids", "forced_answer_token_ids"):
            if (largest := max(getattr(manifest, key), default=0)) >= num_tokens:
                raise ExportError(f"{path}, {key}: expected token ids below {num_tokens}, found {largest}")
        if manifest.max_length_tokens > self.model.max_positions > 0:
            raise ExportError(
                f"{path}, max_length_tokens: expected at most {self.model.max_positions}, for which {BASE_FILE} was made, "
                f"found {manifest.max_length_tokens}"
            )
        if self.heads is not None and manifest.switcher not in (None, {"threshold": self.heads.threshold}):
            raise ExportError(
                f"{path}, switcher: expected threshold {self.heads.threshold} of {HEADS_FILE}, found {manifest.switcher}"
            )

    def __enter__(self) -> "DeviceModel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._context is not None:
            self._context.close()
        self._context = None
        self.model.close()

    def ask(self, question: str, **settings: Any) -> Answer:
        """`answer` for a question in one call; `settings` are the other fields of `Question`."""
        return self.answer(Question(question=question, **settings))

    def answer(self, request: Question, on_event: OnEvent = lambda kind, value: None) -> Answer:
        """Raises PromptError for an empty or too long prompt, and for settings out of range."""
        started_s = time.perf_counter()
        prompt = self.prompt_token_ids(request)
        limits = self._limits(request, len(prompt))
        sampling = self._sampling(request)
        context = self._ready_context(len(prompt), request.num_completions, limits)
        mode, probability, logits = self.prefill(context, prompt, request.mode)
        prefilled_s = time.perf_counter()
        if mode == "reasoning":
            logits = turn_adapter_on(context, prompt)
        switched_s = time.perf_counter()
        on_event("mode", (mode, probability))
        for number in range(1, request.num_completions):
            context.fork(0, number)
        streams = [self.chat.stream() for _ in range(request.num_completions)]
        first_token_s: list[float] = []

        def on_token(number: int, token_id: int) -> None:
            if not first_token_s:
                first_token_s.append(time.perf_counter())
            if text := streams[number].add(token_id):
                on_event("text", (number, text))

        grown = decode_sequences(context, len(prompt), logits, request.num_completions, limits, sampling, on_token)
        decoded_s = time.perf_counter()
        scores = self.verify(context, grown)
        timings = {
            "prefill_s": prefilled_s - started_s,
            "switch_s": switched_s - prefilled_s,
            "first_token_s": first_token_s[0] - started_s,
            "decode_s": decoded_s - switched_s,
            "verify_s": time.perf_counter() - decoded_s,
            "tokens_per_s": sum(len(g.token_ids) for g in grown) / (decoded_s - switched_s),
        }
        return self._conclude(mode, probability, grown, scores, len(prompt), timings)

    def prompt_token_ids(self, request: Question) -> list[int]:
        """The chat with the budget named in it, as tokens `[P]`."""
        if not request.question.strip():
            raise PromptError("the prompt is empty; expected a question")
        try:
            request.question.encode()
        except UnicodeEncodeError as error:
            raise PromptError(f"the prompt: expected text in UTF-8, found something else ({error})") from error
        manifest, question = self.manifest, request.question
        budget = request.budget_tokens
        if budget is None:
            budget = sorted(manifest.budgets_tokens)[len(manifest.budgets_tokens) // 2]
        if budget < 0:
            raise PromptError(f"budget: expected a number of tokens, or 0 to name none, found {budget}")
        if budget:
            question = manifest.budget_prompt_template.format(question=question, budget_tokens=budget)
        system = [{"role": "system", "content": manifest.system_prompt}] if manifest.system_prompt else []
        return self.chat.prompt([*system, {"role": "user", "content": question}])

    def prefill(self, context: LlamaContext, prompt: Sequence[int], mode: Mode) -> tuple[str, float | None, np.ndarray]:
        """Compute the prompt without the adapter; returns the mode, the switcher's probability when it was asked, and
        the logits `[V]` of the base after the prompt (not there yet when reasoning was asked for)."""
        context.clear()
        context.set_adapter(False)
        if mode == "reasoning" or (mode == "auto" and self.heads is None):
            if len(prompt) > 1:
                _decode_prompt(context, prompt[:-1], context.batch_tokens)
            return "reasoning", None, np.empty(0, dtype=np.float32)
        if mode == "base" or self.heads is None:
            return "base", None, _decode_prompt(context, prompt, context.batch_tokens)
        pooler = EmaPooler(self.heads.chunk_tokens, self.heads.ema_alpha)
        context.set_embeddings(True)
        logits = _decode_prompt(context, prompt, EMBEDDING_BATCH, lambda state: pooler.add(state[None]))
        context.set_embeddings(False)
        probability = self.heads.switcher_probability(pooler.result())
        return "reasoning" if self.heads.needs_reasoning(probability) else "base", probability, logits

    def verify(self, context: LlamaContext, grown: Sequence[Growing]) -> list[float | None]:
        """The verifier's score of each completion, in the mode that it was generated in."""
        if self.heads is None:
            return [None] * len(grown)
        states = verification_states(context, grown, self._suffix)
        return [self.heads.verifier_score(state) for state in states]

    def _conclude(
        self,
        mode: str,
        probability: float | None,
        grown: Sequence[Growing],
        scores: Sequence[float | None],
        num_prompt_tokens: int,
        timings: dict[str, float],
    ) -> Answer:
        texts = [self.chat.decode(g.token_ids) for g in grown]
        chosen = vote(texts, [1.0 if score is None else score for score in scores])
        completions = tuple(
            DeviceCompletion(
                text=text,
                answer=answer_key(text),
                token_ids=tuple(g.token_ids),
                num_forced=g.num_forced,
                finish_reason=g.finish_reason,
                score=score,
            )
            for g, text, score in zip(grown, texts, scores, strict=True)
        )
        return Answer(
            mode=mode,
            switcher_probability=probability,
            answer="" if chosen is None else completions[chosen].answer,
            chosen=chosen,
            completions=completions,
            num_prompt_tokens=num_prompt_tokens,
            timings=timings,
        )

    def _sampling(self, request: Question) -> Sampling:
        temperature = request.temperature
        if temperature is None:
            temperature = self.manifest.sampling["temperature"]
        if not is_temperature(temperature):
            raise PromptError(f"temperature: expected at least 0 and at most {MAX_TEMPERATURE:g}, found {temperature}")
        if request.seed < 0:
            raise PromptError(f"seed: expected at least 0, found {request.seed}")
        return Sampling(temperature=temperature, top_p=self.manifest.sampling["top_p"], seed=request.seed)

    def _limits(self, request: Question, num_prompt_tokens: int) -> Limits:
        manifest = self.manifest
        if not 1 <= request.num_completions <= MAX_SEQUENCES:
            raise PromptError(f"n: expected from 1 to {MAX_SEQUENCES} completions, found {request.num_completions}")
        cap = manifest.default_cap if request.cap is None else request.cap
        if cap is not None and cap < 0:
            raise PromptError(f"cap: expected a number of tokens, or 0 for none, found {cap}")
        forced = len(manifest.forced_answer_token_ids) + manifest.answer_tokens if cap else 0
        room = manifest.max_length_tokens - num_prompt_tokens - forced
        if room < 1 or (request.cap and request.cap > room):
            raise PromptError(
                f"the prompt is too long: it has {num_prompt_tokens} tokens, expected at most "
                f"{manifest.max_length_tokens - forced - max(1, request.cap or 0)} "
                f"({manifest.max_length_tokens} less the completion)"
            )
        return Limits(
            max_tokens=room,
            cap=min(cap, room) if cap else None,
            forced_token_ids=manifest.forced_answer_token_ids,
            answer_tokens=manifest.answer_tokens,
            stop_token_ids=frozenset(manifest.stop_token_ids),
        )

    def _ready_context(self, num_prompt_tokens: int, num_sequences: int, limits: Limits) -> LlamaContext:
        """One with room for all of it; made anew only when the last one was too small."""
        longest = limits.max_tokens
        if limits.cap is not None:
            longest = limits.cap + len(limits.forced_token_ids) + limits.answer_tokens
        num_cells = num_prompt_tokens + num_sequences * (longest + (len(self._suffix) if self.heads else 0))
        return self.make_context(num_cells, num_sequences)

    def make_context(self, num_cells: int, num_sequences: int) -> LlamaContext:
        context = self._context
        if context is not None and context.num_cells >= num_cells and context.num_sequences >= num_sequences:
            return context
        if context is not None:
            context.close()
        self._context = LlamaContext(
            self.model,
            num_cells=num_cells,
            num_sequences=num_sequences,
            batch_tokens=BATCH_TOKENS,
            num_threads=self.num_threads,
            kv_type=self._kv_type,
        )
        return self._context


def turn_adapter_on(context: LlamaContext, prompt: Sequence[int]) -> np.ndarray:
    """Compute the last prompt token of sequence 0 with the adapter, over the base's cells; its logits `[V]`."""
    last = len(prompt) - 1
    context.cut(0, last)
    context.set_adapter(True)
    context.decode([prompt[-1]], [last], [0], [True])
    return context.logits(0).copy()


def _decode_prompt(
    context: LlamaContext,
    prompt: Sequence[int],
    batch_tokens: int,
    on_state: Callable[[np.ndarray], None] | None = None,
) -> np.ndarray:
    """Sequence 0 from position 0; the last token's logits `[V]`, and with `on_state` every token's state, in order."""
    for first in range(0, len(prompt), batch_tokens):
        tokens = prompt[first : first + batch_tokens]
        is_last = first + len(tokens) == len(prompt)
        outputs = [False] * (len(tokens) - 1) + [is_last]
        context.decode(tokens, range(first, first + len(tokens)), [0] * len(tokens), outputs)
        if on_state is not None:
            for index in range(len(tokens)):
                on_state(context.hidden(index))
    return context.logits(len(tokens) - 1).copy()


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_export(directory: Path | str, num_threads: int = 0, kv_type: KvType = "f16") -> DeviceModel:
    """An export, ready to answer; see `DeviceModel`."""
    return DeviceModel(directory, num_threads, kv_type)
