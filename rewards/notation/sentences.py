r"""The answer in a completion that marks none: a whole expression in the sentence that states it.

Rule: the last phrase like `the answer is`, unless it says `not`, and what stands behind it in its sentence; when the text then
corrects itself (`Wait, …`), or without such a phrase, the last sentence with an expression. An expression is as long as it can
be: `12\pi`, `2 + 7i`, `(3, 4)`, `5 million`, `2 1/2`, never a piece of it. In a sentence without the phrase the last expression
counts, and one in brackets only when there is no other.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rewards.notation.units import FUNCTIONS, SCALES, is_unit, last_number_in_words

MAX_TAIL_CHARS = 4000
"""A sentence that states the answer stands in the last so many characters, or behind the last phrase."""
_PHRASE = re.compile(
    r"(?:answers?|result|solution|答案|结果|réponse)(?![A-Za-z])[*_`]{0,3}\s{0,3}"
    r"(?::|=|\s[-–—]\s|(?:is|are|was|equals|becomes|would\s{1,3}be|should\s{1,3}be|must\s{1,3}be|est)(?![A-Za-z])|是|为)[*_`]{0,3}"
    r"(?:\s{0,3}(?:therefore|thus|then|hence|actually|indeed|now|just|simply|equal\s{1,3}to|instead|as\s{1,3}follows)(?![A-Za-z])[,:]?){0,2}"
    r"\s{0,3}[:=]?",
    re.IGNORECASE,
)
_NEGATION = re.compile(r"\s{0,3}(?:not|n't|never|neither|no longer|wrong|incorrect)(?![A-Za-z])", re.IGNORECASE)
_CORRECTION = re.compile(r"(?<![A-Za-z])(?:wait|actually|correction|oops|sorry|i mean|mistake|no,|no\.)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<!\\)[.!?](?=\s|$|[\"')*_`]{1,3}(?:\s|$))|\n\s*\n|\n(?=\s*(?:[-*•]|\d+[.)])\s)")
_LINE_END = re.compile(r"(?<!\\)[.!?](?=\s|$)|\n")
_BULLET = re.compile(r"\s*[-*•>]\s+")
_TOKEN = re.compile(
    r"(?P<number>\d+(?:,\d{2,3}(?!\d))*(?:\.\d+)?|\.\d+)|(?P<command>\\[A-Za-z]+|\\.)|(?P<word>[^\W\d_]+)|(?P<space>\s+)|(?P<sign>.)",
    re.DOTALL,
)
_OPERATORS = frozenset("+-*/^=<>_|")
_INSIDE = frozenset("+-*/^=<>_|()[]{}!%$€£¥¢:,;&~'°")
_OPEN, _CLOSE = frozenset("([{"), frozenset(")]}")
_EDGES = " \t\n*_=:,;'\"`&~"
_STATING = frozenset("is are was were be equals becomes equal get gets est sont".split())
_JOINING = frozenset(("and", "or"))


@dataclass(frozen=True, slots=True)
class Stated:
    text: str
    is_expression: bool
    """Else words, the whole sentence behind the phrase."""
    after_phrase: bool


def find_stated(part: str) -> Stated | None:
    """The answer that a text without marks states; None when it states none. Takes linear time."""
    phrase = _last_phrase(part)
    if phrase is not None:
        begin = phrase.end()
        sentence = _sentence_at(part, begin)
        if _NEGATION.match(sentence):
            return _in_last_sentence(part[begin + len(sentence) :]) or Stated(sentence.strip(), False, True)
        expression = find_expression(sentence, after_phrase=True)
        rest = part[begin + len(sentence) :]
        if _CORRECTION.search(rest) and (later := _in_last_sentence(rest)):
            return later
        if expression:
            return Stated(expression, True, True)
        if words := sentence.strip(_EDGES + ".!?"):
            return Stated(words, False, True)
    return _in_last_sentence(part)


def find_correction(tail: str) -> str | None:
    """Behind a marked answer, a later sentence that says `the answer is …` with an expression right behind it."""
    phrase = _last_phrase(tail)
    if phrase is None:
        return None
    sentence = _sentence_at(tail, phrase.end())
    expression = find_expression(sentence, after_phrase=True)
    if not expression or not re.search(r"\d|\\", expression):
        return None
    return expression if not re.search("[A-Za-z]", sentence[: sentence.find(expression)]) else None


def find_expression(sentence: str, after_phrase: bool = False) -> str | None:
    """The expression that a sentence states: the first behind a phrase, else the last outside brackets."""
    sentence = sentence if after_phrase else _BULLET.sub("", sentence)
    groups = _groups(sentence)
    if not groups:
        letter = sentence.strip(_EDGES + ".!?()")
        return letter if after_phrase and re.fullmatch("[A-Za-z]", letter) else last_number_in_words(sentence)
    if after_phrase:
        return groups[0].text
    outside = [group for group in groups if not group.in_brackets]
    return (outside or groups)[-1].text


@dataclass(frozen=True, slots=True)
class _Group:
    text: str
    in_brackets: bool


def _last_phrase(text: str) -> re.Match[str] | None:
    last = None
    for match in _PHRASE.finditer(text):
        if text[match.end() :].strip(_EDGES + ".") if match.end() > len(text) - 10 else True:
            last = match
    return last


def _sentence_at(text: str, begin: int) -> str:
    """From a place to the end of its sentence, white space at the beginning included."""
    start = begin
    while start < len(text) and text[start].isspace():
        start += 1
    piece = text[start : start + MAX_TAIL_CHARS]
    for match in _SENTENCE_END.finditer(piece):
        inner = piece[: match.start()]
        if inner.strip() and inner.count("{") <= inner.count("}") and inner.count(r"\begin") == inner.count(r"\end"):
            return text[begin : start + match.start()]
    return text[begin : start + len(piece)]


def _in_last_sentence(text: str) -> Stated | None:
    """From the last sentence with an expression."""
    tail = text[-MAX_TAIL_CHARS:]
    if len(text) > MAX_TAIL_CHARS:  # not with half a number
        tail = tail[re.search(r"\s|$", tail).end() :]  # type: ignore[union-attr]
    if not re.search(r"[^\W_]", tail):
        return None
    ends = [match.end() for match in _LINE_END.finditer(tail)]
    for start, end in zip([*reversed(ends), 0], [len(tail), *reversed(ends)], strict=True):
        if expression := find_expression(tail[start:end]):
            return Stated(expression, True, False)
    words = tail.strip(_EDGES + ".!?")
    return Stated(words, False, False) if words else None


def _groups(sentence: str) -> list[_Group]:
    """Maximal runs of mathematics, with the scale and the units behind a number."""
    tokens = [(match.lastgroup or "", match.group()) for match in _TOKEN.finditer(sentence)]
    is_in = _belongs(tokens)
    groups: list[_Group] = []
    start = 0
    while start < len(tokens):
        if not is_in[start]:
            start += 1
            continue
        end = start
        while end < len(tokens) and is_in[end]:
            end += 1
        stated = _is_stated(tokens, start)
        if stated or any(token == "=" for _, token in tokens[start:end]):
            end = _with_joined(tokens, is_in, start, end)
        for part in _split_loose(tokens[start:end], keep_lists=stated):
            text = _trimmed(part)
            if re.search(r"\d|\\[A-Za-z]|[A-Za-z]", text):
                groups.append(_Group(text, text[:1] == "(" and text[-1:] == ")" and start > 0 and len(groups) > 0))
        start = max(end, start + 1)
    return groups


def _belongs(tokens: Sequence[tuple[str, str]]) -> list[bool]:
    """Which tokens are mathematics, or can stand between two that are."""
    is_in = [False] * len(tokens)
    depth = 0
    for place, (kind, token) in enumerate(tokens):
        before, after = _neighbour(tokens, place, -1), _neighbour(tokens, place, 1)
        if kind == "sign":
            is_in[place] = token in _INSIDE
            depth += (token == "{") - (token == "}")
        elif kind == "word":
            is_in[place] = depth > 0 or _is_mathematical(tokens, place, before, after, is_in)
        else:
            is_in[place] = True
    return is_in


def _is_mathematical(
    tokens: Sequence[tuple[str, str]], place: int, before: tuple[str, str], after: tuple[str, str], is_in: list[bool]
) -> bool:
    """Whether letters are: a function, a factor, a variable beside an operator, a scale or a unit behind a number."""
    word = tokens[place][1]
    if word in FUNCTIONS and word not in ("max", "min", "deg", "arg", "in"):
        return True
    touches = (place > 0 and tokens[place - 1][0] in ("number", "command")) or (
        place > 0 and tokens[place - 1][1] in ("^", "_", ")", "}") and is_in[place - 1]
    )
    follows_number = (
        before[0] == "number"
        or before[1] in ("}", ")", "%")
        or (before[0] == "word" and _was_unit(tokens, place, is_in))
    )
    if (
        follows_number
        and (word.lower().rstrip("s") in SCALES or is_unit(word))
        and word.lower() not in ("in", "s", "m", "a")
    ):
        return True
    if touches and ((len(word) <= 3 and word.islower()) or len(word) == 1 or is_unit(word)):
        return True
    if len(word) > 2 or (len(word) == 2 and not word.islower()):
        return False
    joins_after = (
        after[0] == "command" or after[1] in _OPERATORS or (place + 1 < len(tokens) and tokens[place + 1][1] == "(")
    )
    joins_before = before[0] == "command" or before[1] in _OPERATORS
    if len(word) == 1 and before[1] == "-" and after[0] == "word" and tokens[place - 1][1] == "-":
        return False  # `T-shirt`
    next_is_word = (
        place + 2 < len(tokens)
        and tokens[place + 1][1] == "-"
        and tokens[place + 2][0] == "word"
        and len(tokens[place + 2][1]) > 1
    )
    return (joins_after or joins_before) and not next_is_word


def _was_unit(tokens: Sequence[tuple[str, str]], place: int, is_in: list[bool]) -> bool:
    step = place - 1
    while step >= 0 and tokens[step][0] == "space":
        step -= 1
    return step >= 0 and is_in[step] and tokens[step][1].lower().rstrip("s") in SCALES


def _neighbour(tokens: Sequence[tuple[str, str]], place: int, step: int) -> tuple[str, str]:
    """The next token in a direction that is no space."""
    place += step
    while 0 <= place < len(tokens):
        if tokens[place][0] != "space":
            return tokens[place]
        place += step
    return ("", "")


def _is_stated(tokens: Sequence[tuple[str, str]], start: int) -> bool:
    """Whether a verb such as `is`, a colon, or nothing stands before a run: then it may be a list."""
    kind, token = _neighbour(tokens, start, -1)
    return not kind or token.lower() in _STATING or token in ":="


def _with_joined(tokens: Sequence[tuple[str, str]], is_in: Sequence[bool], start: int, end: int) -> int:
    """The end of a run with those that `and` or `or` joins to it."""
    while end < len(tokens) and tokens[end][1] in _JOINING:
        after = end + 1
        while after < len(tokens) and is_in[after]:
            after += 1
        if not re.search(r"\d|\\", "".join(token for _, token in tokens[end + 1 : after])):
            break
        end = after
    return end


def _split_loose(tokens: Sequence[tuple[str, str]], keep_lists: bool) -> list[str]:
    """The parts between commas outside brackets, unless the run is a list."""
    text = "".join(token for _, token in tokens)
    if keep_lists or "," not in text or re.search("[=]", text):
        return [text]
    parts, depth, part = [], 0, ""
    for _, token in tokens:
        depth += (token in _OPEN) - (token in _CLOSE)
        if token == "," and depth <= 0:
            parts.append(part)
            part = ""
        else:
            part += token
    return [*parts, part]


def _trimmed(text: str) -> str:
    """Without punctuation, operators and single brackets at its ends."""
    before = None
    while text != before:
        before = text
        text = text.strip(_EDGES).rstrip("+-/^<>|\\(").removesuffix(r"\ldots").rstrip()
        if text.endswith(".") or (text.endswith("!") and not text.endswith("!!")):
            text = text[:-1]
        for opening, closing in (("([", ")]"), ("{", "}")):  # half-open intervals mix the first two
            num_open = sum(map(text.count, opening)) - sum(map(text.count, closing))
            if num_open > 0 and text[:1] in opening:
                text = text[1:]
            elif num_open < 0 and text[-1:] in closing and text[-2:-1] != "\\":
                text = text[:-1]
        if text[:1] in (")", "]", "/", "^", "<", ">") or (text[:1] == "|" and text.count("|") == 1):
            text = text[1:]
    if text.endswith("$") and text.count("$") == 1 and not re.search(r"\d\\?\$$", text):
        text = text[:-1].rstrip("\\")
    return text
