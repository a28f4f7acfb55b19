"""Settings by dotted key, from a YAML file and a command line, and how later ones win over earlier ones."""

import difflib
import importlib.resources
import re
from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.keys import ARGUMENTS, KEYS, LISTS, described, did_you_mean, leaf_of, split_number, without_number

COMMAND_LINE = "command line"


def shipped_names() -> list[str]:
    """Names of the YAML files that this package ships."""
    return sorted(file.name[: -len(".yaml")] for file in _package().iterdir() if file.name.endswith(".yaml"))


def _package() -> Traversable:
    return importlib.resources.files("configs")


def read_file(path: Path | str, problems: list[str]) -> dict[str, Any]:
    """The file's settings by dotted key; appends what is wrong with file and keys."""
    file: Traversable = Path(path).expanduser()
    if not file.is_file() and str(path) in shipped_names():
        file = _package() / f"{path}.yaml"
    if not file.is_file():
        close = difflib.get_close_matches(Path(path).stem, shipped_names(), n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        problems.append(f"{path}: no such file; {hint}shipped configs: {', '.join(shipped_names())}")
        return {}
    try:
        tree = OmegaConf.to_container(OmegaConf.create(file.read_text(encoding="utf-8")), resolve=False)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problems.append(f"{path}, line {mark.line + 1 if mark else '?'}: not YAML: {error.problem or error.context}")
        return {}
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        problems.append(f"{path}: not YAML: {first_line(error)}")
        return {}
    if not isinstance(tree, dict):
        problems.append(f"{path}: expected sections with settings, found a {type(tree).__name__}")
        return {}
    return _flatten(tree, "", str(path), problems)


def read_overrides(overrides: Sequence[str], problems: list[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for override in overrides:
        key, equals, raw = override.partition("=")
        key = key.strip()
        if not equals or not key:
            problems.append(f"{COMMAND_LINE}: expected key=value, found {override!r}")
            continue
        leaf = leaf_of(key)
        raw = raw.strip()
        if leaf is not None and leaf.hint is str and raw[:1] not in ("'", '"'):
            settings[key] = raw
            continue
        if leaf is not None and leaf.hint is int and re.fullmatch(r"[+-]?[0-9_]+", raw):
            settings[key] = int(raw.replace("_", "") or 0)  # decimal: YAML reads 010 as 8
            continue
        if leaf is not None and leaf.hint in (int, float) and re.fullmatch(r"[+-]?[0-9]+(?::[0-9.]+)+", raw):
            problems.append(
                f"{COMMAND_LINE}: {key}: expected {described(leaf.hint)}, found {raw!r}"
            )  # YAML reads 1:30 as 90
            continue
        try:
            value = read_value(raw)
        except ValueError:
            problems.append(f"{COMMAND_LINE}: {key}: expected a YAML value, found {raw!r}")
            continue
        settings |= _flatten({key: value}, "", COMMAND_LINE, problems)
    return settings


def read_value(raw: str) -> Any:
    """A YAML value of a command line. OmegaConf's reader takes 1e-3 for a number, as plain YAML does not. Raises ValueError."""
    try:
        return OmegaConf.to_container(OmegaConf.create(f"value: {raw}"), resolve=False)["value"]  # type: ignore[index, call-overload]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(first_line(error)) from error


def _flatten(tree: Mapping[Any, Any], prefix: str, origin: str, problems: list[str]) -> dict[str, Any]:
    """Known settings of a YAML tree by dotted key; unknown keys go to `problems`."""
    settings: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        leaf = leaf_of(key)
        if leaf is not None and leaf.hint == ARGUMENTS:
            settings |= _flatten_arguments(key, value, origin, problems)
        elif without_number(key) not in KEYS:
            problems.append(f"{origin}: {key}: unknown key{did_you_mean(key)}")
        elif KEYS[without_number(key)] is not None:
            settings[key] = value
        elif key in LISTS and isinstance(value, list):
            settings |= _flatten_list(key, value, origin, problems)
        elif isinstance(value, Mapping):
            settings |= _flatten(value, f"{key}.", origin, problems)
        elif value is not None:  # a section whose settings are all commented out is an empty one
            problems.append(f"{origin}: {key}: expected a section with settings, found {shown(value)}")
    return settings


def _flatten_list(key: str, items: list[Any], origin: str, problems: list[str]) -> dict[str, Any]:
    """A list of sections by dotted keys with numbers; the key itself stands for how many there are."""
    if not items:
        problems.append(f"{origin}: {key}: expected at least one section, found an empty list")
        return {}
    settings: dict[str, Any] = {key: len(items)}
    for number, item in enumerate(items):
        if isinstance(item, Mapping):
            settings |= _flatten(item, f"{key}.{number}.", origin, problems)
        else:
            problems.append(f"{origin}: {key}.{number}: expected a section with settings, found {shown(item)}")
    return settings


def combined(
    layers: Mapping[str, dict[str, Any]], problems: list[str]
) -> tuple[dict[str, Any], dict[str, int], dict[str, str]]:
    """Settings of all layers, later ones win; how long each list of sections is; and where each setting comes from.

    A whole list replaces the one before it. A key without a number means the only section there is.
    """
    settings: dict[str, Any] = {}
    origins: dict[str, str] = {}
    counts = dict.fromkeys(LISTS, 1)
    for origin, layer in layers.items():
        for name in [name for name in LISTS if name in layer]:
            counts[name] = layer[name]
            settings = {key: value for key, value in settings.items() if not key.startswith(f"{name}.")}
        for key, value in layer.items():
            name, number, rest = split_number(key)
            count = counts.get(name, 1)
            if name and number is None and count > 1:
                problems.append(f"{origin}: {key}: expected one of the {count} of {name}, such as {name}.0.{rest}")
            elif name and number is not None and number >= count:
                problems.append(f"{origin}: {key}: expected a number below {count}, of which {name} has so many")
            elif key not in LISTS:
                key = f"{name}.{rest}" if name and count == 1 else key
                settings[key], origins[key] = value, origin
    return settings, counts, origins


def _flatten_arguments(key: str, value: Any, origin: str, problems: list[str]) -> dict[str, Any]:
    """Keyword arguments by dotted key, so that a later file or command line changes one and keeps the others."""
    if not isinstance(value, Mapping):
        if key in KEYS and value is not None:
            problems.append(f"{origin}: {key}: expected names with values, found {shown(value)}")
            return {}
        return {} if key in KEYS else {key: value}
    arguments: dict[str, Any] = {}
    for name, part in value.items():
        if not isinstance(name, str) or not name.isidentifier():
            problems.append(f"{origin}: {key}: expected names of arguments, found {name!r}")
        else:
            arguments |= _flatten_arguments(f"{key}.{name}", part, origin, problems)
    return arguments


def shown(value: Any) -> str:
    return "nothing" if value is None else f"{value!r} ({type(value).__name__})"


def first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
