"""The answer of a completion where it is one of a few labels: the letter of a choice, yes or no."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from rewards.answer_text import split_mark
from rewards.base import AnswerVerdict, BadReference, Outcome, Reference

_PHRASE = (
    r"(?:(?:answer|choice|option|correct|solution|pick|choose)(?:\s{1,3}(?:choice|option|answer|one))?|答案|选择?)[*_]{0,3}"
    r"(?:\s{1,3}(?:is|was|would\s{1,3}be|must\s{1,3}be|should\s{1,3}be)(?![A-Za-z])|是|为)?[*_]{0,3}\s{0,3}:?"
    r"(?:\s{1,3}(?:therefore|thus|then|indeed|clearly|option|choice|letter|the|answer)(?![A-Za-z])){0,2}"
)
_NOT = r"(?:not|never|neither|isn't|wasn't|cannot\s{1,3}be|can't\s{1,3}be)"
_REASON = r"(?:because|since|as|and|or|is|was|are|so|for|when|if|due|but|which|has|gives|by|from|with|in|on|at|holds|works|fits|matches)"
"""Words behind a capital that is a label and neither an article nor a pronoun."""
_GAP = r"[^\w\n]{0,6}"
_STYLE = re.compile(r"\\(?:text|mathrm|mathbf|textbf|textrm|boldsymbol|mathit|fbox|boxed)\s{0,3}\{")


def verify_choice(text: str, reference: Reference) -> AnswerVerdict:
    """The verifier `label`: `verify_label` against the reference answer, one of the task's labels."""
    return verify_label(text, reference.answer, reference.labels)


def verify_label(text: str, reference_answer: str, labels: Sequence[str]) -> AnswerVerdict:
    """Whether the completion `text` settles on `reference_answer`, which is one of `labels`.

    UNPARSABLE when no label is found. Raises BadReference for a reference answer that is none of the labels.
    """
    if reference_answer not in labels:
        raise BadReference(f"reference answer: expected one of {', '.join(labels)}, found {reference_answer!r}")
    label = find_label(text, labels)
    if label is None:
        return AnswerVerdict(outcome=Outcome.UNPARSABLE, answer="")
    return AnswerVerdict(outcome=Outcome.CORRECT if label == reference_answer else Outcome.WRONG, answer=label)


def find_label(text: str, labels: Sequence[str]) -> str | None:
    r"""The label that a completion ends up with; None when there is none. Takes linear time.

    What counts is the part after the thought and the last mark in it, as for mathematics (`rewards.answer_text`). In order:

    1. The last phrase like `the answer is B`, `B is correct`, `答案是B`, where it stands behind the mark or the mark holds no
       label; without a mark, anywhere.
    2. In the mark the label that stands first, in either case, alone or with the choice's text behind it.
    3. The first word of all when `.`, `)`, `,`, `:`, a dash or the line's end follows it.
    4. The last label that stands alone.

    Several labels in one place (`A or B`) are no answer. `not yes` is `no` where there are two labels; of more a label that is
    denied is passed over. Letters are capitals, except in marks, in brackets and as the first word. A capital before a small
    word is an article or a pronoun (`A cat`, `I am`) unless that word gives a reason (`A because …`).

    Examples with labels A to D: `\boxed{C}`, `\boxed{\text{(C) blue}}`, `The answer is (C).`, `C. blue`, `(c)`, `**C**` → C;
    `A cat is blue` → None.
    """
    found = split_mark(text)
    if found is None:
        return None
    patterns = _patterns(tuple(labels))
    behind = found.behind if found.content is not None else found.part
    is_settled, label = _by_phrase(behind, patterns, labels)
    if is_settled:
        return label
    if found.content is not None:
        is_settled, label = _in_mark(_STYLE.sub("", found.content), patterns, labels)
        if is_settled:
            return label
        is_settled, label = _by_phrase(found.part, patterns, labels)
        return label
    answer = _STYLE.sub("", found.part)
    if first := patterns.first.match(answer):
        return None if patterns.more.match(answer, first.end(1)) else _as_label(first[1], labels)
    return _last_alone(answer, patterns, labels)


@dataclass(frozen=True, slots=True)
class _Patterns:
    marked: re.Pattern[str]
    phrase: re.Pattern[str]
    is_right: re.Pattern[str]
    first: re.Pattern[str]
    alone: re.Pattern[str]
    more: re.Pattern[str]
    """Another label that goes with the one before: `, B`, `or B`."""
    denied_before: re.Pattern[str]
    denied_behind: re.Pattern[str]


@lru_cache(maxsize=64)
def _patterns(labels: tuple[str, ...]) -> _Patterns:
    are_letters = all(len(label) == 1 for label in labels)
    word = "(" + "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True)) + ")"
    begins, ends = r"(?<![A-Za-z0-9_'\\])", r"(?![A-Za-z0-9_']|-[A-Za-z])"
    article = rf"(?!(?<=[AI])\s+(?!{_REASON}(?![A-Za-z]))[a-z])" if are_letters else ""
    behind_first = r"(?:\W{0,3}?[.):,]|[*_\")]{0,3}\s{0,3}[–—-]\s|[*_\")]{0,3}\s{0,3}(?:\n|\Z))"
    flags = 0 if are_letters else re.IGNORECASE
    any_case = re.IGNORECASE
    lead = r"(?:(?:the\s{1,3})?(?:final\s{1,3})?(?:correct\s{1,3})?(?:answer|option|choice)(?:\s{1,3}is)?\s{0,3}:?)?"
    # Words such as `answer` are found in either case, whatever the labels are.
    return _Patterns(
        marked=re.compile(rf"\W{{0,8}}{lead}\W{{0,8}}{word}{ends}", any_case),
        phrase=re.compile(
            rf"(?i:{_PHRASE})(?i:\s{{0,3}}({_NOT}))?{_GAP}(?:option\s|choice\s)?{begins}{word}{ends}{article}|"
            rf"(?i:{_PHRASE}){_GAP}\((?i:{word})\)",
            flags,
        ),
        is_right=re.compile(
            rf"{begins}{word}[)*_]{{0,3}}\s{{1,3}}(?i:is\s{{1,3}}(?:the\s{{1,3}})?(?:correct|right|answer))(?![A-Za-z])",
            flags,
        ),
        first=re.compile(rf"\A[^\w\n]{{0,8}}{word}{ends}{behind_first}", any_case),
        alone=re.compile(rf"{begins}{word}{ends}{article}", flags),
        more=re.compile(
            rf"[)\"*_]{{0,3}}\s{{0,3}}(?:,|/|&|;|(?i:or|and)(?![A-Za-z]))(?:\s{{0,3}}(?i:or|and)(?![A-Za-z]))?\W{{0,4}}{word}{ends}{article}",
            flags,
        ),
        denied_before=re.compile(
            rf"(?:{_NOT}|n't|nor|than|unlike|over)\s{{1,3}}(?:(?:a|the|option|choice|answer)\s{{1,3}})?[(\"*]{{0,3}}\Z",
            any_case,
        ),
        denied_behind=re.compile(
            r"[)\"*_]{0,3}\s{1,3}(?:(?:is|was|are)\s{1,3}(?:also\s{1,3})?(?:wrong|incorrect|not|out|impossible)|fails|isn't|cannot|can't|does not)",
            any_case,
        ),
    )


def _by_phrase(text: str, patterns: _Patterns, labels: Sequence[str]) -> tuple[bool, str | None]:
    """Whether a phrase settles the answer, and on which label (None: on several)."""
    found: tuple[int, tuple[bool, str | None]] = (-1, (False, None))
    for match in patterns.phrase.finditer(text):
        word = match[2] or match[3]
        place = match.end(2) if match[2] else match.end(3)
        if match[1]:
            if len(labels) == 2:
                found = match.start(), (True, _other(word, labels))
        elif patterns.more.match(text, place):
            found = match.start(), (True, None)
        elif not patterns.denied_behind.match(text, place):
            found = match.start(), (True, _as_label(word, labels))
    for match in patterns.is_right.finditer(text):
        if match.start() > found[0] and not patterns.denied_before.search(
            text, max(0, match.start() - 40), match.start()
        ):
            found = match.start(), (True, _as_label(match[1], labels))
    return found[1]


def _in_mark(content: str, patterns: _Patterns, labels: Sequence[str]) -> tuple[bool, str | None]:
    match = patterns.marked.match(content)
    if match is None:
        return False, None
    behind = content[match.end() :]
    is_small_word = match[1].islower() and len(match[1]) == 1 and re.match(r"\s+[A-Za-z]", behind) is not None
    if is_small_word:  # `a cat`
        return False, None
    return True, None if patterns.more.match(content, match.end()) else _as_label(match[1], labels)


def _last_alone(text: str, patterns: _Patterns, labels: Sequence[str]) -> str | None:
    last = None
    for match in patterns.alone.finditer(text):
        is_denied = patterns.denied_before.search(text, max(0, match.start() - 40), match.start()) is not None
        if is_denied and len(labels) == 2:
            last = _other(match[1], labels)
        elif not is_denied and not patterns.denied_behind.match(text, match.end()):
            last = _as_label(match[1], labels)
    return last


def _as_label(found: str, labels: Sequence[str]) -> str:
    """The label as it is written among the labels."""
    return next(label for label in labels if label.lower() == found.lower())


def _other(found: str, labels: Sequence[str]) -> str:
    return next(label for label in labels if label.lower() != found.lower())
