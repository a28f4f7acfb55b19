"""The built-in tasks: chains of additions and subtractions, and the text that teaches them.

A chain is `37+58-12=?`: two to five numbers, no intermediate result below zero. Difficulty is the
number of operations. A chain belongs to the held-out split when a hash of its expression says so, so
the split is the same for every seed, and neither pretraining, SFT nor RL ever shows a held-out chain.

Three kinds of text come from here: tasks (a question and its answer), reasoning traces that are right
but verbose in varying degree (restating, re-checking), as distilled traces are, and the pretraining
documents of the embedded model.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

MAX_NUMBER = 99
HELD_OUT_FRAC = 0.1

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Numbers `[n]` joined by operations `[n - 1]`, each `+` or `-`.

    Example: `Chain(numbers=(37, 58, 12), operations=("+", "-"))` is `37+58-12`, with answer 83.
    """

    numbers: tuple[int, ...]
    operations: tuple[str, ...]

    @property
    def expression(self) -> str:
        tail = "".join(f"{op}{n}" for op, n in zip(self.operations, self.numbers[1:], strict=True))
        return f"{self.numbers[0]}{tail}"

    @property
    def question(self) -> str:
        return f"{self.expression}=?"

    @property
    def partial_results(self) -> tuple[int, ...]:
        """The running total after each operation `[n - 1]`."""
        totals, total = [], self.numbers[0]
        for op, number in zip(self.operations, self.numbers[1:], strict=True):
            total = total + number if op == "+" else total - number
            totals.append(total)
        return tuple(totals)

    @property
    def answer(self) -> int:
        return self.partial_results[-1]

    @property
    def difficulty(self) -> int:
        return len(self.operations)

    @property
    def is_held_out(self) -> bool:
        digest = hashlib.sha256(self.expression.encode()).digest()
        return int.from_bytes(digest[:4], "big") < HELD_OUT_FRAC * 2**32


def draw_chain(rng: random.Random, num_numbers: int) -> Chain:
    """A chain of `num_numbers` numbers up to 99 whose running totals all stay at 0 or above."""
    numbers, operations, total = [rng.randint(0, MAX_NUMBER)], [], 0
    total = numbers[0]
    for _ in range(num_numbers - 1):
        op = rng.choice("+-")
        number = rng.randint(0, MAX_NUMBER if op == "+" else min(MAX_NUMBER, total))
        total = total + number if op == "+" else total - number
        numbers.append(number)
        operations.append(op)
    return Chain(numbers=tuple(numbers), operations=tuple(operations))


def draw_split_chain(rng: random.Random, num_numbers: int, held_out: bool) -> Chain:
    """A chain of the wanted split, by rejection (about one draw in ten is held out)."""
    while True:
        chain = draw_chain(rng, num_numbers)
        if chain.is_held_out == held_out:
            return chain


def write_trace(rng: random.Random, chain: Chain, verbosity: float) -> str:
    """Worked steps for `chain`, all of them right; each restatement or check stands with probability `verbosity`.

    `verbosity=0` leaves only the steps: `37+58=95. 95-12=83.`
    """

    def chatty() -> bool:
        return rng.random() < verbosity

    parts, total = [], chain.numbers[0]
    if chatty():
        parts.append(f"Start with {total}.")
    steps = zip(chain.operations, chain.numbers[1:], chain.partial_results, strict=True)
    for op, number, result in steps:
        parts.append(f"{total}{op}{number}={result}.")
        if chatty():
            inverse = "-" if op == "+" else "+"
            parts.append(f"Check: {result}{inverse}{number}={total}.")
        total = result
    if chatty():
        parts.append(f"So the total is {total}.")
    return " ".join(parts)


def write_sft_completion(rng: random.Random, chain: Chain, verbosity: float) -> str:
    """A reasoning completion: the trace between think tags, then the answer, without the end token."""
    return f"{THINK_OPEN}{write_trace(rng, chain, verbosity)}{THINK_CLOSE}{chain.answer}"


Segment = tuple[str, bool]
"""Text, and whether the pretraining loss covers it (random operands teach nothing)."""


def write_document(rng: random.Random, budget_template: str) -> list[Segment]:
    """One pretraining document: a list of facts, or a question with its bare answer or with worked steps.

    The assistant never reasons: in base mode the model answers directly. Worked steps follow the same user turn
    without the assistant's tag, so the skill is there for an adapter to elicit, and what the base computes for a
    question serves both, as a language model's does. Held-out chains never occur.
    """
    kind = rng.random()
    if kind < 0.35:
        return [segment for _ in range(rng.randint(4, 8)) for segment in _write_fact(rng)] + [(END, True)]
    num_numbers = rng.choices((2, 3, 4, 5), (0.45, 0.25, 0.15, 0.15))[0]
    chain = draw_split_chain(rng, num_numbers, held_out=False)
    question = chain.question
    if rng.random() < 0.6:
        question = budget_template.format(question=question, budget_tokens=rng.randint(10, 400))
    if kind < 0.65:
        return [(f"{USER}{question}{END}{ASSISTANT}", False), (f"{chain.answer}{END}", True)]
    trace = write_trace(rng, chain, verbosity=rng.choice((0.0, 0.4, 0.8)))
    return [(f"{USER}{question}{END}", False), (f"{trace}{END}", True)]


def _write_fact(rng: random.Random) -> Iterator[Segment]:
    """`412+58=` and `470. `: a single step as it occurs inside the longest chains."""
    number = rng.randint(0, MAX_NUMBER)
    total = rng.randint(0, 4 * MAX_NUMBER if rng.random() < 0.6 else MAX_NUMBER)
    if rng.random() < 0.5 and total >= number:
        yield f"{total}-{number}=", False
        yield f"{total - number}. ", True
    else:
        yield f"{total}+{number}=", False
        yield f"{total + number}. ", True
