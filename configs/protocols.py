"""Published benchmarks: what is asked, how it is sampled, what counts as the answer; read from YAML."""

import difflib
import importlib.resources
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from configs.schema.data import TaskSource
from configs.schema.protocols import ProtocolsSection


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One benchmark, as it is to be measured."""

    name: str
    source: TaskSource
    num_runs: int = 1
    """Completions per task; accuracy is their mean."""
    temperature: float = 0.6
    top_p: float = 1.0
    max_completion_tokens: int = 32768
    """What published figures allow; `evaluation.max_completion_tokens` may allow less."""


_TASK_KEYS = typing.get_type_hints(TaskSource)
_OWN_KEYS = {key: hint for key, hint in typing.get_type_hints(Protocol).items() if key not in ("name", "source")}
_HINTS = {**_TASK_KEYS, **_OWN_KEYS, "file": str}
"""A protocol's settings in YAML: those of a task source, its own, and the file's name."""


def load_protocols(section: ProtocolsSection) -> list[Protocol]:
    """Those that are asked for, in order. Raises ValueError with every problem, one in a line."""
    problems: list[str] = []
    protocols = list(_protocols(section, problems))
    if problems:
        raise ValueError("\n".join(problems))
    return protocols


def protocol_problems(section: ProtocolsSection) -> list[str]:
    """What is wrong with the section, each in one line."""
    problems: list[str] = []
    for _ in _protocols(section, problems):
        pass
    return problems


def _protocols(section: ProtocolsSection, problems: list[str]) -> Iterator[Protocol]:
    """What can be built of the protocols asked for; appends what is wrong with the others."""
    if section.data_dir and not Path(section.data_dir).expanduser().is_dir():
        problems.append(f"protocols.data_dir: expected a directory, found none at {section.data_dir}")
    shipped = importlib.resources.files("configs") / "evaluation" / "protocols.yaml"
    known: dict[str, dict[str, Any]] = yaml.safe_load(shipped.read_text(encoding="utf-8"))
    if section.file:
        for name, settings in _read_file(section.file, problems).items():
            known[name] = known.get(name, {}) | settings
    for name in section.names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            problems.append(f"protocols.names: expected some of {', '.join(known)}, found {name!r}{hint}")
            continue
        source = _locate(name, known[name], section, problems)
        if source is not None:
            own = {key: value for key, value in known[name].items() if key in _OWN_KEYS}
            yield Protocol(name=name, source=source, **own)


def _locate(name: str, settings: dict[str, Any], section: ProtocolsSection, problems: list[str]) -> TaskSource | None:
    """The protocol's data: its file in `data_dir` where it is there, else the hub."""
    chosen: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in settings.items() if key in _TASK_KEYS
    }
    file = Path(section.data_dir).expanduser() / settings.get("file", "")
    if section.data_dir and settings.get("file") and file.is_file():
        chosen |= {"source": str(file), "subset": ""}
        return TaskSource(**chosen)
    if chosen.get("source"):
        return TaskSource(**chosen)
    problems.append(
        f"protocols.data_dir: expected a directory with {settings.get('file') or 'a file'} for {name} (it has no source "
        f"on the hub), found {section.data_dir or 'no directory named'}"
    )
    return None


def _read_file(path: str, problems: list[str]) -> dict[str, dict[str, Any]]:
    """Name → settings of a file of the user's; those that are wrong are left out and named."""
    try:
        tree = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        problems.append(f"protocols.file: expected a YAML file, found {path}: {str(error).splitlines()[0]}")
        return {}
    if not isinstance(tree, Mapping) or not all(isinstance(settings, Mapping) for settings in tree.values()):
        problems.append(f"protocols.file: {path}: expected names of protocols with settings under each")
        return {}
    return {
        str(name): {key: value for key, value in settings.items() if _is_right(f"{path}: {name}", key, value, problems)}
        for name, settings in tree.items()
    }


def _is_right(where: str, key: str, value: Any, problems: list[str]) -> bool:
    hint = _HINTS.get(key)
    if hint is None:
        close = difflib.get_close_matches(key, _HINTS, n=1)
        problems.append(f"{where}: {key}: unknown key{f'; did you mean {close[0]}?' if close else ''}")
        return False
    if typing.get_origin(hint) is dict:
        fits, words = isinstance(value, dict), "names with values"
    elif typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        fits = isinstance(value, list) and all(isinstance(one, item) for one in value)
        words = "a list"
    elif typing.get_origin(hint) is typing.Literal:
        fits, words = value in typing.get_args(hint), f"one of {', '.join(typing.get_args(hint))}"
    else:
        types = (int, float) if hint is float else hint
        fits = isinstance(value, types) and (hint is bool) == isinstance(value, bool)
        words = {str: "text", int: "an integer", float: "a number", bool: "true or false"}[hint]
    if fits and key in ("num_runs", "max_completion_tokens"):
        fits, words = value >= 1, "at least 1"
    if fits and key == "temperature":
        fits, words = value >= 0, "at least 0"
    if fits and key == "top_p":
        fits, words = 0 < value <= 1, "above 0 and at most 1"
    if not fits:
        problems.append(f"{where}: {key}: expected {words}, found {value!r}")
    return fits
