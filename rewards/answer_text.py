r"""The part of a completion's text that states its final answer. Plain text work, which the device does too.

The rule, in this order:

1. What counts is the text behind the last `</think>` that has any behind it; an open thought has no answer. Tags are found in
   either case, end marks such as `</s>` and `<|im_end|>` are left out.
2. An `<answer>` that is there narrows it to what stands in the last one.
3. The last mark counts: a box (`\boxed{…}`, `\fbox{…}`, `\boxed 7`) that closes, or `#### …` to the end of its line. Boxes that
   only `and`, `or` or a comma parts are a list. A box that opens behind all that close and is cut, or is empty, means that there
   is no answer.
4. Unless a later sentence corrects the mark: `\boxed{8}. Check: 3+4=7. So the correct answer is 7.`
5. Without a mark the answer is the expression that the last sentences state (`rewards.notation.sentences`).
"""

import re
from collections import deque
from dataclasses import dataclass

from rewards.base import THINK_CLOSE, THINK_OPEN
from rewards.notation.characters import plain_characters
from rewards.notation.sentences import find_correction, find_stated

_THINK_TAG = re.compile(f"{re.escape(THINK_OPEN[:-1])}(?:ing)?>|{re.escape(THINK_CLOSE[:-1])}(?:ing)?>", re.IGNORECASE)
_END_MARK = re.compile(r"</s>|<\|[A-Za-z_]{1,40}\|>|<(?:end_of_turn|eos|pad)>")
_ANSWER_OPEN, _ANSWER_CLOSE = re.compile(r"<answer>", re.IGNORECASE), re.compile(r"</answer>", re.IGNORECASE)
_BRACES = re.compile(
    r"\\(?:boxed|fbox|framebox)(?:\s*(\{)|\s{0,3}([+-]?(?:\d[\d,]*(?:\.\d+)?|[A-Za-z])(?![A-Za-z])))|\\.|[{}]",
    re.DOTALL,
)
"""Opening of a box, a box of one number or letter, an escaped character (never a brace that groups), a brace."""
_HASHES = re.compile(r"####[ \t]*([^\s#][^\n]*)")
_FULL_STOP = re.compile(r"(?<=[0-9])\.$")
_PLAIN_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")
_JOIN = re.compile(r"[\s$]{0,20}(?:,|;|&|,?\s{0,3}(?:and|or))[\s$]{0,20}(?:[A-Za-z]\w{0,3}\s{0,2}=)?[\s$]{0,20}")


@dataclass(frozen=True, slots=True)
class Extracted:
    text: str
    is_marked: bool
    """The answer stands in a box, an `<answer>` or after `####`, so all of it is the answer."""
    is_expression: bool = True
    """Not marked, and not an expression either: the words of a sentence."""
    after_phrase: bool = False
    """Not marked, but right behind words such as `the answer is`."""


def extract_answer_text(text: str) -> str | None:
    """The part of a completion that states its answer; None when there is none. Takes linear time.

    Examples: `<think>3+4=7</think>It is \\boxed{7}.` → `7`; `#### 7` → `7`; `so it is 7` → `7`; `<think>3+4=7` → None;
    `\\boxed{}` → None.
    """
    extracted = extract(text)
    return extracted.text if extracted else None


def extract(text: str, is_reference: bool = False) -> Extracted | None:
    """As `extract_answer_text`, and how the answer was stated. A reference answer without a mark is all answer."""
    part = _final_part(text)
    if part is None:
        return None
    if _PLAIN_NUMBER.fullmatch(part):
        return Extracted(part, is_marked=False)
    part = plain_characters(part)
    part, is_tagged = _in_answer_tag(part)
    mark = _last_mark(part)
    if mark is not None:
        content, end = mark
        if not is_reference and content is not None and (correction := find_correction(part[end:])):
            return Extracted(correction, is_marked=False, after_phrase=True)
        content = _FULL_STOP.sub("", content.strip()) if content else ""
        return Extracted(content, is_marked=True) if content else None
    if is_tagged or is_reference:
        return Extracted(part, is_marked=True) if part else None
    stated = find_stated(part)
    if stated is None:
        return None
    return Extracted(stated.text, False, stated.is_expression, stated.after_phrase)


@dataclass(frozen=True, slots=True)
class MarkSplit:
    """The final part of a completion around its last mark."""

    part: str
    content: str | None
    """Text of the mark; None without one, or when it is empty or cut."""
    behind: str
    """What follows the mark."""


def split_mark(text: str) -> MarkSplit | None:
    """None when the thought is open or nothing stands behind it."""
    part = _final_part(text)
    if part is None:
        return None
    part, is_tagged = _in_answer_tag(plain_characters(part))
    mark = _last_mark(part)
    if mark is not None:
        return MarkSplit(part, mark[0] or None, part[mark[1] :])
    return MarkSplit(part, part if is_tagged and part else None, "")


def _final_part(text: str) -> str | None:
    """Behind the thought, end marks left out; None when the thought is open or nothing stands behind it."""
    end = len(text)
    tags = list(_THINK_TAG.finditer(text)) if "<" in text else []
    text = text if "<" not in text or tags else _END_MARK.sub(" ", text)
    num_closed = 0
    for tag in reversed(tags):
        part = _END_MARK.sub(" ", text[tag.end() : end]).strip()
        if tag.group()[1] != "/":
            return None
        if part:
            return part
        num_closed += 1
        end = tag.start()
    if num_closed:
        return None
    return text.strip() or None


def _in_answer_tag(part: str) -> tuple[str, bool]:
    opened = _last(_ANSWER_OPEN, part)
    if opened is None:
        return part, False
    closed = _ANSWER_CLOSE.search(part, opened.end())
    return part[opened.end() : closed.start() if closed else len(part)].strip(), True


def _last_mark(part: str) -> tuple[str | None, int] | None:
    """Content and end of the last mark; content None when a box was opened behind it and cut; None without a mark."""
    boxes, is_cut = _boxes(part)
    hashes = _last(_HASHES, part)
    if hashes is not None and (not boxes or hashes.start() > boxes[-1][1]) and not (is_cut and r"\boxed" in hashes[1]):
        return hashes[1], hashes.end()
    if is_cut:
        return None, len(part)
    if not boxes:
        return None
    contents = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        if box[1] > contents[0][0] or not _JOIN.fullmatch(part, box[1], contents[0][0]):
            break
        contents.insert(0, box)
    texts = list(dict.fromkeys(content.strip() for _, _, content in contents))
    return ", ".join(texts) if len(texts) > 1 else boxes[-1][2], boxes[-1][1]


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


def _boxes(text: str) -> tuple[list[tuple[int, int, str]], bool]:
    """Boxes that close, as (start, end, content), the one that opens last at the end; and whether one that opens behind
    them all does not. One pass with a stack of open braces."""
    open_braces: list[tuple[int, int, bool]] = []
    boxes: list[tuple[int, int, str]] = []
    for match in _BRACES.finditer(text):
        token = match.group()
        if match[2] is not None:
            boxes.append((match.start(), match.end(), match[2]))
        elif token == "}":
            start, inside, is_box = open_braces.pop() if open_braces else (-1, -1, False)
            if is_box and (not boxes or start > boxes[-1][0]):
                boxes.append((start, match.end(), text[inside : match.start()]))
        elif match[1] is not None or token == "{":
            open_braces.append((match.start(), match.end(), match[1] is not None))
    is_cut = any(is_box and (not boxes or start >= boxes[-1][1]) for start, _, is_box in open_braces)
    return boxes, is_cut


def same_text(answer: str, other: str) -> bool:
    """Whether two answers are equal to the letter, but for white space around them."""
    return answer.strip() == other.strip()
