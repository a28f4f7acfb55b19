"""Completions that people reported, with the verdict that is right (`cases/`): each is one of a kind."""

import json
from collections import Counter
from pathlib import Path

import pytest

from rewards.base import Outcome
from rewards.label_answer import find_label
from rewards.math_answer import verify_answer
from tests.benchmarks.verifiers import FILLINGS

CASES = Path(__file__).parent / "cases"


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (CASES / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", ["answers.jsonl", "answers_right.jsonl"])
def test_verdicts_are_right(name):
    rows = read(name)
    assert len(rows) > 100
    wrong = [
        (row["id"], row["completion"], row["reference"])
        for row in rows
        if (verify_answer(row["completion"], row["reference"]).outcome == Outcome.CORRECT)
        != (row["expected"] == "correct")
    ]
    assert wrong == []


def test_labels_are_right():
    rows = read("labels.jsonl")
    found = {row["id"]: find_label(row["completion"], row["labels"]) for row in rows}
    assert found == {row["id"]: row["expected"] for row in rows}


def test_every_kind_has_several_cases():
    assert min(Counter(row["kind"] for row in read("answers.jsonl")).values()) >= 3


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", FILLINGS)
def test_a_hundred_thousand_characters_of_anything_take_no_time_to_speak_of(name):
    """Linear, each takes less than a second; quadratic, minutes."""
    filled = FILLINGS[name] * (100_000 // len(FILLINGS[name]))
    for text in (filled, f"\\boxed{{{filled}}}", f"The answer is {filled}"):
        assert verify_answer(text, "7919").outcome != Outcome.CORRECT
        assert find_label(text, ("P", "Q")) is None
