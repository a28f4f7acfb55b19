"""The answer of a completion where it is one of a few labels: the letter of a choice, yes or no."""

import re
from collections.abc import Sequence
from functools import lru_cache

from rewards.answer_text import extract
from rewards.base import AnswerVerdict, Outcome

_PHRASE = r"(?:answer|choice|option)(?:\s+(?:is|was|would\s+be))?\s*:?\s*\W{0,4}"


def verify_label(text: str, reference_answer: str, labels: Sequence[str]) -> AnswerVerdict:
    """Whether the completion `text` settles on `reference_answer`, which is one of `labels`.

    UNPARSABLE when no label is found. Raises ValueError for a reference answer that is none of the labels.
    """
    if reference_answer not in labels:
        raise ValueError(f"reference answer: expected one of {', '.join(labels)}, found {reference_answer!r}")
    label = find_label(text, labels)
    if label is None:
        return AnswerVerdict(outcome=Outcome.UNPARSABLE, answer="")
    return AnswerVerdict(outcome=Outcome.CORRECT if label == reference_answer else Outcome.WRONG, answer=label)


def find_label(text: str, labels: Sequence[str]) -> str | None:
    r"""The label that a completion ends up with; None when there is none. Takes linear time.

    What counts is the part after the thought, as for mathematics. In a box, or after `####`, the label stands first,
    alone or with the choice's text behind it. Elsewhere it is the last one after words like `the answer is`, else the
    first word of all if a `.`, `)` or `:` follows it (a `,` after a word), else the last label that stands alone. Words are found in either
    case, letters as capitals only, and an `A` before a small letter is an article.

    Examples with labels A to D: `\boxed{C}`, `\boxed{\text{(C) blue}}`, `The answer is (C).`, `C. blue`, `**C**` → C;
    `A cat is blue` → None.
    """
    extracted = extract(text)
    if extracted is None:
        return None
    marked, phrase, first, alone = _patterns(tuple(labels))
    answer = re.sub(r"\\(?:text|mathrm|mathbf|textbf)\s*\{", "", extracted.text)
    if extracted.is_marked:
        found = marked.match(answer)
        return _as_label(found[1], labels) if found else None
    for pattern in (phrase, first, alone):
        if matches := list(pattern.finditer(answer)):
            return _as_label(matches[-1][1], labels)
    return None


@lru_cache(maxsize=64)
def _patterns(labels: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    are_letters = all(len(label) == 1 for label in labels)
    word = "(" + "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True)) + ")"
    ends = r"(?![\w'])"
    article = r"(?!(?<=A)\s+[a-z])" if are_letters else ""
    after = "[.):]" if are_letters else "[.):,]"
    flags = 0 if are_letters else re.IGNORECASE
    # Words such as `answer` are found in either case, whatever the labels are.
    return (
        re.compile(rf"\W{{0,8}}{word}{ends}", flags),
        re.compile(rf"(?i:{_PHRASE}){word}{ends}{article}", flags),
        re.compile(rf"\A\W{{0,8}}{word}{ends}(?:\W{{0,3}}{after}|\W{{0,8}}\Z)", flags),
        re.compile(rf"(?<![\w']){word}{ends}{article}", flags),
    )


def _as_label(found: str, labels: Sequence[str]) -> str:
    """As it is written among the labels."""
    return next(label for label in labels if label.lower() == found.lower())
