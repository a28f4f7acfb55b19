"""The part of a completion's text that states its answer. Plain text work, which the device does too."""

import re
from dataclasses import dataclass

from rewards.base import THINK_CLOSE, THINK_OPEN

_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
"""Opening of a box, an escaped character (never a brace that groups), a brace."""
_HASHES = re.compile(r"####[ \t]*(\S[^\n]*)")
_FULL_STOP = re.compile(r"(?<=[0-9])\.$")


@dataclass(frozen=True, slots=True)
class Extracted:
    text: str
    is_marked: bool
    """Boxed or after `####`, so all of it is the answer; else the answer stands somewhere in it."""


def extract_answer_text(text: str) -> str | None:
    """The part of a completion that states its answer; None when there is none.

    What counts is the text after the last `</think>`, or all of it without one; a thought that was opened and
    not closed has no answer. In that part: the last `\\boxed{…}` with balanced braces, else the last `#### …`
    up to the end of its line, else the part as it is. Takes linear time.

    Examples: `<think>3+4=7</think>It is \\boxed{7}.` → `7`; `#### 7` → `7`; `so it is 7` → `so it is 7`;
    `<think>3+4=7` → None; `\\boxed{}` → None.
    """
    extracted = extract(text)
    return extracted.text if extracted else None


def extract(text: str) -> Extracted | None:
    """As `extract_answer_text`, and whether the answer was marked."""
    part = text.rpartition(THINK_CLOSE)[2]
    if THINK_OPEN in part:
        return None
    marked = _last_boxed(part)
    if marked is None:
        lines = _HASHES.findall(part)
        marked = lines[-1] if lines else None
    answer = part.strip() if marked is None else _FULL_STOP.sub("", marked.strip())
    return Extracted(text=answer, is_marked=marked is not None) if answer else None


def _last_boxed(text: str) -> str | None:
    """Content of the box that opens last among those that close; one pass with a stack of open braces."""
    open_braces: list[tuple[int, bool]] = []
    last_start, content = -1, None
    for match in _BRACES.finditer(text):
        token = match.group()
        if token == "}":
            start, is_box = open_braces.pop() if open_braces else (-1, False)
            if is_box and start > last_start:
                last_start, content = start, text[start : match.start()]
        elif token.endswith("{") and token != r"\{":
            open_braces.append((match.end(), token != "{"))
    return content
