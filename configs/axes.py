"""The axes of a sweep: settings with several values, or with a range that values are drawn from."""

import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from configs.keys import leaf_of
from configs.layers import COMMAND_LINE, read_value
from configs.load import ConfigError

_NUMBER = r"\s*([-+]?[0-9.]+(?:e[-+]?[0-9]+)?)\s*"
_RANGE = re.compile(rf"(log|uniform|int)\({_NUMBER},{_NUMBER}\)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Numbers from `low` to `high`, both included.

    Example: `log(1e-5,1e-2)` → `Range(kind="log", low=1e-5, high=1e-2)`
    """

    kind: Literal["log", "uniform", "int"]
    """log: every order of magnitude is equally likely; int: whole numbers"""
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.kind}({self.low:g},{self.high:g})"


Axis = list[Any] | Range
"""Values, or a range that they are drawn from"""


def split_axes(overrides: Sequence[str]) -> tuple[dict[str, Axis], list[str]]:
    """The axes of a sweep, dotted key → values, and the overrides that are none.

    An axis is an override with a range, `log(1e-5,1e-2)`, with a list where the setting takes one value, or with a list of
    lists where it takes a list: `rl.kl_beta=[1e-3,1e-4]`, `budget.buckets_tokens=[[40,80],[60]]`. Values are checked by `load_config`.

    Raises ConfigError for an unknown key, an empty list, or a value that is there twice.
    """
    axes: dict[str, Axis] = {}
    fixed: list[str] = []
    problems: list[str] = []
    for override in overrides:
        key, _, raw = (part.strip() for part in override.partition("="))
        leaf = leaf_of(key)
        if leaf is not None and (span := _RANGE.fullmatch(raw)):
            axes[key] = _read_range(key, span, problems)
            continue
        if leaf is None or not raw.startswith("["):
            fixed.append(override)
            continue
        try:
            values = read_value(raw)
        except ValueError:
            problems.append(f"{COMMAND_LINE}: {key}: expected a YAML list, found {raw!r}")
            continue
        if typing.get_origin(leaf.hint) is tuple and not any(isinstance(value, list) for value in values):
            fixed.append(override)
        elif not values or any(value in values[:place] for place, value in enumerate(values)):
            problems.append(f"{COMMAND_LINE}: {key}: expected a list of different values, found {raw}")
        else:
            axes[key] = list(values)
    if problems:
        raise ConfigError(problems)
    return axes, fixed


def _read_range(key: str, span: re.Match[str], problems: list[str]) -> Range:
    kind, low, high = span[1].lower(), float(span[2]), float(span[3])
    if (
        not low < high
        or (kind == "log" and low <= 0)
        or (kind == "int" and not (low.is_integer() and high.is_integer()))
    ):
        words = {"log": "two numbers above 0", "int": "two whole numbers", "uniform": "two numbers"}[kind]
        problems.append(f"{COMMAND_LINE}: {key}: expected {words}, the smaller one first, found {span[0]}")
    return Range(kind=typing.cast(Any, kind), low=low, high=high)


def require_lists(axes: dict[str, Axis]) -> dict[str, list[Any]]:
    """For a grid. Raises ConfigError for a range."""
    lists = {key: axis for key, axis in axes.items() if not isinstance(axis, Range)}
    if spans := [f"{key}={axis}" for key, axis in axes.items() if isinstance(axis, Range)]:
        raise ConfigError([f"sweep.method: expected random or tpe for ranges ({', '.join(spans)}), found grid"])
    return lists
