"""Rows whose answer is one of a few: multiple choice, yes or no."""

import random
from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any

from configs.errors import UserError
from configs.schema.data import TaskSource
from orchestrator.data.sources import Row, find_field, read_text


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
    letters, texts = _lettered_choices(find_field(row, name), name, where)
    answer = read_text(row, source.answer_field, where).strip()
    own_letters = ascii_uppercase[: len(texts)]
    # A number among the choices is meant as one of them when it is written as text.
    is_place = answer.isdecimal() and not (isinstance(find_field(row, source.answer_field), str) and answer in texts)
    if is_place and int(answer) < len(texts):
        return texts, own_letters[int(answer)]
    if answer in texts:
        return texts, own_letters[texts.index(answer)]
    letter = answer.strip("().: ").upper()
    if letter in letters:
        return texts, own_letters[letters.index(letter)]
    raise UserError(
        f"{where}: field {source.answer_field!r}: expected a choice's place from 0 to {len(texts) - 1}, its letter or its "
        f"text, found {answer[:80]!r}"
    )


def _lettered_choices(value: Any, name: str, where: str) -> tuple[list[str], list[str]]:
    """Letters and texts of a list, of `{"text": […], "label": […]}`, or of `{"A": …, "B": …}`."""
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        texts = list(value["text"])
        letters = [str(label).upper() for label in value.get("label") or ascii_uppercase[: len(texts)]]
    elif isinstance(value, Mapping):
        letters, texts = [str(label).upper() for label in value], list(value.values())
    else:
        texts = list(value) if isinstance(value, list) else []
        letters = list(ascii_uppercase[: len(texts)])
    if not 2 <= len(texts) <= len(ascii_uppercase) or len(letters) != len(texts):
        raise UserError(f"{where}: expected a list of choices in field {name!r}, found {value!r:.80}")
    for number, text in enumerate(texts, start=1):
        if text is None or not str(text).strip():
            raise UserError(f"{where}: field {name!r}: expected a text for choice {number}, found {text!r}")
    return letters, [str(text).strip() for text in texts]


def lettered(texts: list[str]) -> str:
    """`A. red`, `B. blue`, …, one in a line."""
    return "\n".join(f"{letter}. {text}" for letter, text in zip(ascii_uppercase, texts, strict=False))


def read_label(row: Row, source: TaskSource, where: str) -> str:
    """Which of `labels` the row's answer is: the word in either case; true and false are the first and the second; of a
    table of scores the word with the highest. Raises ValueError naming row and field."""
    value: Any = find_field(row, source.answer_field)
    if isinstance(value, Mapping) and value:
        value = max(value, key=lambda word: value[word] or 0)
    elif isinstance(value, bool):
        value = source.labels[0 if value else 1]
    for label in source.labels:
        if isinstance(value, str) and value.strip().lower() == label.lower():
            return label
    raise UserError(
        f"{where}: field {source.answer_field!r}: expected one of {', '.join(source.labels)}, found {value!r:.80}"
    )
