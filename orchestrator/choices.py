"""Rows whose answer is one of a few: multiple choice, yes or no."""

import random
from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any

from configs.data_schema import TaskSource
from orchestrator.datasets import Row, read_text


def read_choices(row: Row, source: TaskSource, where: str, index: int) -> tuple[list[str], str]:
    """The choices in the order in which they are shown, and the letter of the right one.

    With several `choice_fields` the first is right and the order is seeded by the row's index. With one, it is a list,
    and `answer_field` holds the right one's place from 0, its letter, or its text. Raises ValueError naming row and
    field.
    """
    if len(source.choice_fields) > 1:
        texts = [read_text(row, name, where) for name in source.choice_fields]
        right = texts[0]
        random.Random(f"choices/{index}").shuffle(texts)
        return texts, ascii_uppercase[texts.index(right)]
    (name,) = source.choice_fields
    value = row.get(name)
    if not isinstance(value, list) or not 2 <= len(value) <= len(ascii_uppercase):
        raise ValueError(f"{where}: expected a list of choices in field {name!r}, found {value!r:.80}")
    texts = [str(choice).strip() for choice in value]
    answer = read_text(row, source.answer_field, where)
    letters = ascii_uppercase[: len(texts)]
    # A number among the choices is meant as one of them when it is written as text.
    is_place = answer.isdecimal() and not (isinstance(row[source.answer_field], str) and answer in texts)
    if is_place and int(answer) < len(texts):
        return texts, letters[int(answer)]
    if answer in letters:
        return texts, answer
    if answer in texts:
        return texts, letters[texts.index(answer)]
    raise ValueError(
        f"{where}: field {source.answer_field!r}: expected a choice's place from 0 to {len(texts) - 1}, its letter or its "
        f"text, found {answer[:80]!r}"
    )


def lettered(texts: list[str]) -> str:
    """`A. red`, `B. blue`, …, one in a line."""
    return "\n".join(f"{letter}. {text}" for letter, text in zip(ascii_uppercase, texts, strict=False))


def read_label(row: Row, source: TaskSource, where: str) -> str:
    """Which of `labels` the row's answer is: the word in either case; true and false are the first and the second; of a
    table of scores the word with the highest. Raises ValueError naming row and field."""
    value: Any = row.get(source.answer_field)
    if isinstance(value, Mapping) and value:
        value = max(value, key=lambda word: value[word] or 0)
    elif isinstance(value, bool):
        value = source.labels[0 if value else 1]
    for label in source.labels:
        if isinstance(value, str) and value.strip().lower() == label.lower():
            return label
    raise ValueError(
        f"{where}: field {source.answer_field!r}: expected one of {', '.join(source.labels)}, found {value!r:.80}"
    )
