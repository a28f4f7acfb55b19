"""Which values of a setting are right: the rules that many settings share."""

from collections.abc import Callable
from typing import Any

Rule = tuple[str, Callable[[Any], bool]]
"""Which values are right, in words and as a predicate."""

COUNT: Rule = ("at least 1", lambda value: value >= 1)
NOT_NEGATIVE: Rule = ("at least 0", lambda value: value >= 0)
POSITIVE: Rule = ("above 0", lambda value: value > 0)
SHARE: Rule = ("from 0 to 1", lambda value: 0 <= value <= 1)
BELOW_ONE: Rule = ("at least 0 and below 1", lambda value: 0 <= value < 1)
POSITIVE_SHARE: Rule = ("above 0 and at most 1", lambda value: 0 < value <= 1)


def expected(key: str, words: str, value: Any) -> str:
    """A problem in one line: the key, which values are right, and the one that was found."""
    return f"{key}: expected {words}, found {value!r}"
