"""Answers that are words: a name, a day, `no solution`."""

import re

from rewards.notation.units import FUNCTIONS

MAX_REFERENCE_WORDS = 4
"""A reference of more words is prose: a completion would have to repeat it to the letter."""
_SHORT = frozenset("no on so up us we he it is am pm if or to at an as by do go in me my of".split())
"""Two letters that are a word and no product."""
_WORDS_ONLY = re.compile(r"[^\W\d_]+(?:[\s,.;:'\"’!?&()-]+[^\W\d_]+)*[\s.,;:!?'\"()]*")
_ARTICLES = frozenset(("a", "an", "the"))


def as_words(text: str) -> tuple[str, ...] | None:
    r"""The words of an answer that is nothing else, in small letters, articles left out; None for mathematics.

    Letters are words when three stand together and name no function: `abc` is a word, `xy` a product, `sin x` mathematics.

    Examples: `Evelyn` → evelyn; `The even numbers` → even, numbers; `p - q`, `2abc`, `\pi` → None.
    """
    stripped = text.strip(" \"'()")
    if "\\" in text or not _WORDS_ONLY.fullmatch(stripped):
        return None
    words = [word.lower() for word in re.findall(r"[^\W\d_]+", stripped)]
    if not any((len(word) > 2 and word not in FUNCTIONS) or word in _SHORT or not word.isascii() for word in words):
        return None
    return tuple(word for word in words if word not in _ARTICLES) or tuple(words)
