"""The dotted keys of all settings and what each of them takes, read off the schema."""

import dataclasses
import difflib
import operator
import typing
from collections.abc import Iterator
from typing import Any, Literal

from configs.schema.run import RunConfig


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A setting of the schema."""

    hint: Any
    """Its type"""


def _walk(section: type, prefix: str) -> Iterator[tuple[str, Leaf | None]]:
    """Dotted keys under a section class: settings with their leaf, sections with None. Keys of a list of sections stand for
    those of each of them."""
    for name, hint in typing.get_type_hints(section).items():
        key = f"{prefix}{name}"
        if typing.get_origin(hint) is tuple and dataclasses.is_dataclass(typing.get_args(hint)[0]):
            LISTS[key] = typing.get_args(hint)[0]
            hint = LISTS[key]
        if dataclasses.is_dataclass(hint):
            yield key, None
            yield from _walk(typing.cast(type, hint), f"{key}.")
        else:
            yield key, Leaf(hint=hint)


LISTS: dict[str, type] = {}
"""Keys that hold a list of sections, and the class of these: `data.train.1.source` is the second one's, and where there is one
alone its settings go without a number: `data.train.source`."""
KEYS = dict(_walk(RunConfig, ""))
ARGUMENTS = dict[str, Any]
"""Type of settings that hold keyword arguments of a function: whatever names the function takes are keys below them."""


def leaf_of(key: str) -> Leaf | None:
    """The setting that a key means; `reward.verifier_args.tolerance` is a part of `reward.verifier_args`. None for sections and
    unknown keys."""
    key = without_number(key)
    while key:
        if (leaf := KEYS.get(key)) is not None:
            return leaf
        key = key.rpartition(".")[0]
        if (parent := KEYS.get(key)) is not None and parent.hint != ARGUMENTS:
            return None
    return None


def split_number(key: str) -> tuple[str, int | None, str]:
    """The list that a key is in, the number there, and the rest: `data.train.1.source` → `data.train`, 1, `source`.

    A key in no list is `"", None, key`; one without a number has None.
    """
    for name in LISTS:
        if key.startswith(f"{name}."):
            first, _, rest = key[len(name) + 1 :].partition(".")
            return (name, int(first), rest) if first.isdecimal() else (name, None, key[len(name) + 1 :])
    return "", None, key


def without_number(key: str) -> str:
    """`data.train.1.source` → `data.train.source`"""
    name, number, rest = split_number(key)
    return f"{name}.{rest}".rstrip(".") if number is not None else key


def with_number(key: str) -> str:
    """`data.train.source` → `data.train.0.source`; keys in no list stay as they are."""
    name, number, rest = split_number(key)
    return f"{name}.{number or 0}.{rest}" if name else key


def value_at(config: RunConfig, key: str) -> Any:
    """The value of a dotted key. Raises AttributeError for one that means several."""
    name, number, rest = split_number(key)
    if not name:
        return operator.attrgetter(key)(config)
    sections = operator.attrgetter(name)(config)
    if number is None and len(sections) > 1:
        raise AttributeError(f"{key}: one of {len(sections)}")
    return operator.attrgetter(rest)(sections[number or 0])


def places(config: RunConfig, key: str) -> list[tuple[str, Any]]:
    """Keys and values of a setting, several where it is in a list of sections."""
    name, _, rest = split_number(key)
    if not name:
        return [(key, operator.attrgetter(key)(config))]
    return [(f"{prefix}.{rest}", operator.attrgetter(rest)(section)) for prefix, section in sections_of(config, name)]


def sections_of(config: RunConfig, name: str) -> list[tuple[str, Any]]:
    """Keys and sections of a list of them: `data.train`, or `data.train.0`, `data.train.1` where there are several."""
    sections = operator.attrgetter(name)(config)
    if len(sections) == 1:
        return [(name, sections[0])]
    return [(f"{name}.{number}", section) for number, section in enumerate(sections)]


def setting_names() -> list[str]:
    """Dotted keys of all settings, in the order of the schema."""
    return [key for key, leaf in KEYS.items() if leaf is not None]


def did_you_mean(key: str) -> str:
    name = key.rpartition(".")[2]
    close = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.85)
    close = close or [known for known in KEYS if known.rpartition(".")[2] == name][:3]
    if not close:
        names = {known.rpartition(".")[2]: known for known in KEYS}
        close = [names[match] for match in difflib.get_close_matches(name, names, n=1, cutoff=0.75)]
    return f"; did you mean {' or '.join(close)}?" if close else ""


def described(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return {int: "a list of integers", float: "a list of numbers"}.get(typing.get_args(hint)[0], "a list of texts")
    return {int: "an integer", float: "a number", bool: "true or false", str: "text"}[hint]
