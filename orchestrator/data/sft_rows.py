"""SFT conversations as rows for the learner, trained on the assistant's tokens only.

A row is tokenised turn by turn with the chat template: what stands before an assistant's turn, generation prompt
included, exactly as an engine would be given it; then the turn with its end token. So the loss mask is exact and
the model is trained on the token sequences that it will generate.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from actors.types import TrainRow
from configs.errors import UserError
from configs.presets import apply_preset
from configs.schema.data import ARITHMETIC
from configs.schema.run import RunConfig
from orchestrator.data import arithmetic
from orchestrator.data.sources import Rows, load_rows, preset_hint, read_conversation, with_system_prompt
from orchestrator.data.tasks import adapter_start, seeded_rng, shuffled_position, with_budget
from rewards.base import THINK_CLOSE

log = logging.getLogger(__name__)

MIN_BUDGET_TOKENS = 10
MAX_ATTEMPTS = 1000
"""Rows in a row that are too long before the data counts as unusable."""

NUM_SHOWN = 3
"""Rows that cannot be used, of those that are counted."""

Messages = list[dict[str, str]]


class TurnsRewritten(ValueError):
    """The chat template changes what stood in earlier turns once another follows."""


class SftRows:
    """Training rows at index 0, 1, 2, …: epoch after epoch, each in another seeded order.

    Like `TaskStream`, a row follows from seed and index alone. A row that is longer than `model.max_length_tokens`
    is dropped, counted, and another one drawn in its place.
    """

    def __init__(self, config: RunConfig, tokenizer: Any, end_token_ids: Sequence[int] = ()):
        """`end_token_ids`: what ends a completion; empty is the tokenizer's end token.

        Raises ValueError when a dataset cannot be read; its rows are read when they are asked for.
        """
        self._source = apply_preset(config.data.sft)
        self._config, self._tokenizer = config, tokenizer
        self._end_token_ids = tuple(end_token_ids) or (tokenizer.eos_token_id,)
        self._rows: Rows | None = None if self._source.source == ARITHMETIC else load_rows(self._source)
        self._dropped: set[str] = set()

    @property
    def num_dropped(self) -> int:
        """Different rows that were met so far and found too long."""
        return len(self._dropped)

    def at(self, index: int) -> TrainRow:
        """The row at an index. Raises ValueError naming file, row and field when it cannot be read."""
        limit = self._config.model.max_length_tokens
        for attempt in range(MAX_ATTEMPTS):
            where, messages = self._conversation(index, attempt)
            row = self._make_row(messages, where)
            if len(row.token_ids) <= limit:
                return row
            self._count_dropped(where, len(row.token_ids))
        raise ValueError(
            f"{self._source.source}: expected rows of at most model.max_length_tokens {limit} tokens, found "
            f"{MAX_ATTEMPTS} longer ones in a row"
        )

    def check(self) -> None:
        """Read every row of a dataset once, and render one of each kind of conversation: roles in the same order, with a
        thought or without.

        Raises UserError that says how many cannot be used and names the first of them.
        """
        problems = list(self._problems())
        if problems:
            count = f"{len(problems):,} of {len(self._rows or ()):,} rows cannot be trained on"
            shown = "; ".join(problems[:NUM_SHOWN])
            raise UserError(f"data.sft: {count}: {shown}{preset_hint('data.sft', self._source)}")

    def _problems(self) -> Iterator[str]:
        seen: set[tuple[Any, ...]] = set()
        for position, row in enumerate(self._rows or ()):
            where = self._rows.where(position) if self._rows else ""
            try:
                messages = read_conversation(row, self._source, where)
                kind = tuple((turn["role"], THINK_CLOSE in turn["content"]) for turn in messages)
                if kind not in seen:
                    seen.add(kind)
                    self._make_row(messages, where)
            except ValueError as error:
                yield str(error)

    def _make_row(self, messages: Messages, where: str) -> TrainRow:
        try:
            return make_row(messages, self._tokenizer, self._end_token_ids, self._config.model.masked_lora)
        except Exception as error:  # a chat template raises what it likes
            raise UserError(f"{where}: {error}") from error

    def _count_dropped(self, where: str, num_tokens: int) -> None:
        if where in self._dropped:
            return
        self._dropped.add(where)
        if self.num_dropped in (1, 10, 100, 1_000, 10_000, 100_000):
            log.warning(
                "%d SFT rows dropped so far, longer than model.max_length_tokens %d; now %s with %d tokens",
                *(self.num_dropped, self._config.model.max_length_tokens, where, num_tokens),
            )

    def _conversation(self, index: int, attempt: int) -> tuple[str, Messages]:
        """Where the conversation comes from, for errors, and its turns."""
        seed = self._config.run.seed
        if self._rows is None:
            number = shuffled_position(seed, index, self._source.num_rows) if self._source.num_rows else index
            where = f"{ARITHMETIC} trace {number}/{attempt}"
            return where, self._write_arithmetic(seeded_rng(seed, "sft", f"{number}/{attempt}"))
        rng = seeded_rng(seed, "sft", f"{index}/{attempt}")
        position = rng.randrange(len(self._rows)) if attempt else shuffled_position(seed, index, len(self._rows))
        where = self._rows.where(position)
        return where, read_conversation(self._rows[position], self._source, where)

    def _write_arithmetic(self, rng: Any) -> Messages:
        # The prompt names a budget as in RL, but one that says nothing of the trace's length: after SFT the model
        # takes such prompts in its stride and ignores the number, and RL teaches what it means.
        train = next((s for s in self._config.data.train if s.source == ARITHMETIC), self._config.data.train[0])
        chain = arithmetic.draw_split_chain(rng, rng.choice(train.difficulties) + 1, held_out=False)
        budget_tokens = rng.randint(MIN_BUDGET_TOKENS, self._config.model.max_length_tokens)
        question = [{"role": "user", "content": chain.question}]
        prompt = with_budget(question, budget_tokens, self._config.budget)
        completion = arithmetic.write_sft_completion(rng, chain, rng.choice(self._source.verbosity))
        turns = [*prompt, {"role": "assistant", "content": completion}]
        return with_system_prompt(turns, self._source.system_prompt or train.system_prompt)


class RowCheck:
    """`SftRows.check` in the background, while other things start."""

    def __init__(self, rows: SftRows):
        self._rows = rows
        self._error: BaseException | None = None
        # A daemon, so that Ctrl-C need not wait for it.
        self._thread = threading.Thread(target=self._check, name="sft rows", daemon=True)
        self._thread.start()

    def _check(self) -> None:
        try:
            self._rows.check()
        except BaseException as error:  # whatever it is, `wait` raises it where somebody hears it
            self._error = error

    def wait(self, timeout_s: float | None = None) -> None:
        """Until it is done, or for so long. Raises what was found."""
        self._thread.join(timeout_s)
        if self._error is not None:
            raise self._error


def make_row(messages: Messages, tokenizer: Any, end_token_ids: Sequence[int], masked_lora: bool) -> TrainRow:
    """Tokens of a conversation, with a loss mask over every assistant's turn and its end token.

    What the template puts after the end token (a line break, often) is no part of the turn, and at the end of the
    row it is left out. The adapter's `start` is the token before the first turn that is trained on. A template that
    rewrites earlier turns (Qwen3's drops their thoughts) leaves the last turn to train on, behind what an engine would be
    given. Raises ValueError when the template drops a part of a turn, or ends one without end token.

    Example, one token per character, `[U]`, `[A]` and `[E]` tags: user `7`, assistant `8` → tokens `[U] 7 [E] [A] 8 [E]`,
    mask `0 0 0 0 1 1`.
    """
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    try:
        token_ids, mask = _tokens_and_mask(messages, turns, tokenizer, end_token_ids)
    except TurnsRewritten:
        if len(turns) == 1:
            raise
        token_ids, mask = _tokens_and_mask(messages, turns[-1:], tokenizer, end_token_ids)
    return TrainRow(
        token_ids=np.asarray(token_ids, dtype=np.int32),
        start=adapter_start(mask.index(True), masked_lora),
        loss_mask=np.asarray(mask, dtype=bool),
        behaviour_logprobs=np.zeros(len(token_ids), dtype=np.float32),
        advantage=0.0,
    )


def _tokens_and_mask(
    messages: Messages, turns: Sequence[int], tokenizer: Any, end_token_ids: Sequence[int]
) -> tuple[list[int], list[bool]]:
    """Through the last of `turns`, which are those that are trained on."""
    token_ids: list[int] = []
    mask: list[bool] = []
    done = ""
    for index in turns:
        before = _apply(tokenizer, messages[:index], generate=True)
        through = _apply(tokenizer, messages[: index + 1], generate=False)
        for old, new in ((done, before), (before, through)):
            if not new.startswith(old):
                raise TurnsRewritten(
                    f"expected a chat template that only appends; at turn {index + 1} it changes what stands before it "
                    f"({_difference(old, new)})"
                )
        said = "".join(messages[index]["content"].split())
        if said not in "".join(through[len(before) :].split()):
            raise ValueError(
                f"expected a chat template that keeps all of the assistant's text, a thought too; turn {index + 1} "
                f"{messages[index]['content'][:60]!r} became {through[len(before) :][:60]!r} (use a model whose template keeps "
                "it, or rows without a thought)"
            )
        context, turn = _tokens(tokenizer, before[len(done) :]), _tokens(tokenizer, through[len(before) :])
        num_trained = max((place + 1 for place, token in enumerate(turn) if token in end_token_ids), default=0)
        if num_trained == 0:
            raise ValueError(
                f"expected one of the end tokens {tokenizer.convert_ids_to_tokens(list(end_token_ids))} after the "
                f"assistant's turn, found {through[-40:]!r}"
            )
        if index == turns[-1]:
            turn = turn[:num_trained]
        token_ids += context + turn
        mask += [False] * len(context) + [place < num_trained for place in range(len(turn))]
        done = through
    return token_ids, mask


def _difference(old: str, new: str) -> str:
    """Where two texts part, with some of what stands there."""
    place = next((n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    start = max(0, place - 20)
    return f"…{old[start : place + 40]!r} became …{new[start : place + 40]!r}"


def _apply(tokenizer: Any, messages: Messages, generate: bool) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
