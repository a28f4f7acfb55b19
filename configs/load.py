"""YAML files and `key=value` overrides become one frozen `RunConfig`; every problem is found at once."""

import dataclasses
import difflib
import importlib.resources
import json
import os
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.checks.run import problems as config_problems
from configs.checks.run import value_at
from configs.errors import UserError
from configs.schema.run import RunConfig
from configs.secrets import SECRET_NAME

COMMAND_LINE = "command line"
_FROM_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:\s*([A-Za-z0-9_]+)")
Scalar = str | int | float | bool


class ConfigError(UserError):
    """A configuration that cannot be run, with everything that is wrong with it."""

    def __init__(self, problems: Sequence[str]):
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        listing = "".join(f"\n  - {problem}" for problem in self.problems)
        return f"{len(self.problems)} configuration problem{'s' * (len(self.problems) != 1)}:{listing}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Leaf:
    """A setting of the schema."""

    hint: Any
    """Its type"""


def _walk(section: type, prefix: str) -> Iterator[tuple[str, _Leaf | None]]:
    """Dotted keys under a section class: settings with their leaf, sections with None."""
    for name, hint in typing.get_type_hints(section).items():
        key = f"{prefix}{name}"
        if dataclasses.is_dataclass(hint):
            yield key, None
            yield from _walk(typing.cast(type, hint), f"{key}.")
        else:
            yield key, _Leaf(hint=hint)


_KEYS = dict(_walk(RunConfig, ""))
_ARGUMENTS = dict[str, Any]
"""Type of settings that hold keyword arguments of a function: whatever names the function takes are keys below them."""


def _leaf_of(key: str) -> _Leaf | None:
    """The setting that a key means; `reward.verifier_args.tolerance` is a part of `reward.verifier_args`. None for sections and
    unknown keys."""
    while key:
        if (leaf := _KEYS.get(key)) is not None:
            return leaf
        key = key.rpartition(".")[0]
        if (parent := _KEYS.get(key)) is not None and parent.hint != _ARGUMENTS:
            return None
    return None


def load_config(path: Path | str | None, overrides: Sequence[str] | Mapping[str, Any] = ()) -> RunConfig:
    """The defaults of `configs.schema`, then the YAML file, then the overrides; later ones win.

    `path` is a YAML file, or the bare name of one that this package ships (`quickstart`). Overrides are dotted keys with
    their values, `{"budget.buckets_tokens": [40, 80]}`, or what a command line has, `budget.buckets_tokens=[40,80]`,
    with a YAML value; there text settings take the value as it stands, unless it is in quotes. OmegaConf's interpolations, such as `${oc.env:HOME}`, are resolved.

    Raises ConfigError with all problems: of the file, of keys, of types, and what `configs.checks` finds.
    """
    problems: list[str] = []
    file_settings = _read_file(path, problems) if path is not None else {}
    broken_file = bool(problems) and not file_settings
    override_settings = _read_overrides(as_overrides(overrides), problems)
    settings = file_settings | override_settings
    origins = dict.fromkeys(file_settings, str(path)) | dict.fromkeys(override_settings, COMMAND_LINE)

    refused = {key for key, value in settings.items() if not _accepts(key, value, origins[key], problems)}
    merged = _merged(settings, refused)
    for key in [key for key in settings if key not in refused]:
        try:
            OmegaConf.select(merged, key)
        except OmegaConfBaseException as error:
            problems.append(f"{origins[key]}: {key}: {_first_line(error)}")
            refused.add(key)
            merged = _merged(settings, refused)
    config = typing.cast(RunConfig, OmegaConf.to_object(merged))
    if not broken_file:
        # A refused value was replaced by its default, so what the checks say of that key means nothing.
        problems += [text for text in config_problems(config) if not any(key in text for key in refused)]
    if problems:
        raise ConfigError(problems)
    return config


def as_overrides(settings: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Settings as a command line has them: `{"rl.kl_beta": 1e-3}` → `["rl.kl_beta=0.001"]`.

    Raises ConfigError naming a value that is no text, number, truth value or list of them.
    """
    if not isinstance(settings, Mapping):
        return list(settings)
    try:
        return [f"{key}={json.dumps(value, default=os.fspath)}" for key, value in settings.items()]
    except TypeError as error:
        raise ConfigError(
            [f"settings: expected texts, numbers, truth values and lists of them, found {error}"]
        ) from error


def split_axes(overrides: Sequence[str]) -> tuple[dict[str, list[Any]], list[str]]:
    """The axes of a sweep, dotted key → values, and the overrides that are none.

    An axis is an override with a list where the setting takes one value, or a list of lists where it takes a list:
    `rl.kl_beta=[1e-3,1e-4]`, `budget.buckets_tokens=[[40,80],[60]]`. Values are checked by `load_config`.

    Raises ConfigError for an unknown key, an empty list, or a value that is there twice.
    """
    axes: dict[str, list[Any]] = {}
    fixed: list[str] = []
    problems: list[str] = []
    for override in overrides:
        key, _, raw = (part.strip() for part in override.partition("="))
        leaf = _leaf_of(key)
        if leaf is None or not raw.startswith("["):
            fixed.append(override)
            continue
        try:
            values = OmegaConf.to_container(OmegaConf.create(f"value: {raw}"), resolve=False)["value"]  # type: ignore[index, call-overload]
        except (yaml.YAMLError, OmegaConfBaseException):
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


def dump_config(config: RunConfig) -> str:
    """Complete YAML that `load_config` reads back to an equal config."""
    tree = _map_text(dataclasses.asdict(config), _escaped)
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """Quotes text that some reader of YAML takes for a number, a date or a truth value: `1e5`, `0x10`, `on`."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        is_odd = _LOOKS_LIKE_A_VALUE.fullmatch(text) is not None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="'" if is_odd else None)


_Dumper.add_representer(str, _Dumper.represent_text)
_LOOKS_LIKE_A_VALUE = re.compile(
    r"[-+.]?[0-9][0-9a-fA-FxXoeE_:.,+-]*|[-+]?\.(?:inf|nan)|null|~|true|false|yes|no|on|off|inf|nan", re.IGNORECASE
)


def as_flat_dict(config: RunConfig) -> dict[str, Scalar]:
    """Dotted key → value, lists as comma-separated text, arguments of functions as JSON: for MLflow's parameters."""
    flat: dict[str, Scalar] = {}
    for key, leaf in _KEYS.items():
        if leaf is not None and leaf.hint == _ARGUMENTS:
            flat |= {f"{key}.{name}": json.dumps(value) for name, value in value_at(config, key).items()}
        elif leaf is not None:
            value = value_at(config, key)
            flat[key] = ",".join(map(str, value)) if isinstance(value, tuple) else value
    return flat


def setting_names() -> list[str]:
    """Dotted keys of all settings, in the order of the schema."""
    return [key for key, leaf in _KEYS.items() if leaf is not None]


def shipped_names() -> list[str]:
    """Names of the YAML files that this package ships."""
    return sorted(file.name[: -len(".yaml")] for file in _package().iterdir() if file.name.endswith(".yaml"))


def _package() -> Traversable:
    return importlib.resources.files("configs")


def _read_file(path: Path | str, problems: list[str]) -> dict[str, Any]:
    """The file's settings by dotted key; appends what is wrong with file and keys."""
    file: Traversable = Path(path).expanduser()
    if not file.is_file() and Path(path).name == str(path) and Path(path).suffix == "":
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
        problems.append(f"{path}: not YAML: {_first_line(error)}")
        return {}
    if not isinstance(tree, dict):
        problems.append(f"{path}: expected sections with settings, found a {type(tree).__name__}")
        return {}
    return _flatten(tree, "", str(path), problems)


def _read_overrides(overrides: Sequence[str], problems: list[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for override in overrides:
        key, equals, raw = override.partition("=")
        key = key.strip()
        if not equals or not key:
            problems.append(f"{COMMAND_LINE}: expected key=value, found {override!r}")
            continue
        leaf = _leaf_of(key)
        raw = raw.strip()
        if leaf is not None and leaf.hint is str and raw[:1] not in ("'", '"'):
            settings[key] = raw
            continue
        if leaf is not None and leaf.hint is int and re.fullmatch(r"[+-]?[0-9_]+", raw):
            settings[key] = int(raw.replace("_", "") or 0)  # decimal: YAML reads 010 as 8
            continue
        if leaf is not None and leaf.hint in (int, float) and re.fullmatch(r"[+-]?[0-9]+(?::[0-9.]+)+", raw):
            problems.append(
                f"{COMMAND_LINE}: {key}: expected {_described(leaf.hint)}, found {raw!r}"
            )  # YAML reads 1:30 as 90
            continue
        try:
            # OmegaConf's reader takes 1e-3 for a number, as plain YAML does not.
            value = OmegaConf.to_container(OmegaConf.create(f"value: {raw}"), resolve=False)["value"]  # type: ignore[index, call-overload]
        except (yaml.YAMLError, OmegaConfBaseException):
            problems.append(f"{COMMAND_LINE}: {key}: expected a YAML value, found {raw!r}")
            continue
        settings |= _flatten({key: value}, "", COMMAND_LINE, problems)
    return settings


def _flatten(tree: Mapping[Any, Any], prefix: str, origin: str, problems: list[str]) -> dict[str, Any]:
    """Known settings of a YAML tree by dotted key; unknown keys go to `problems`."""
    settings: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        leaf = _leaf_of(key)
        if leaf is not None and leaf.hint == _ARGUMENTS:
            settings |= _flatten_arguments(key, value, origin, problems)
        elif key not in _KEYS:
            problems.append(f"{origin}: {key}: unknown key{_did_you_mean(key)}")
        elif _KEYS[key] is not None:
            settings[key] = value
        elif isinstance(value, Mapping):
            settings |= _flatten(value, f"{key}.", origin, problems)
        elif value is not None:  # a section whose settings are all commented out is an empty one
            problems.append(f"{origin}: {key}: expected a section with settings, found {_shown(value)}")
    return settings


def _flatten_arguments(key: str, value: Any, origin: str, problems: list[str]) -> dict[str, Any]:
    """Keyword arguments by dotted key, so that a later file or command line changes one and keeps the others."""
    if not isinstance(value, Mapping):
        if key in _KEYS and value is not None:
            problems.append(f"{origin}: {key}: expected names with values, found {_shown(value)}")
            return {}
        return {} if key in _KEYS else {key: value}
    arguments: dict[str, Any] = {}
    for name, part in value.items():
        if not isinstance(name, str) or not name.isidentifier():
            problems.append(f"{origin}: {key}: expected names of arguments, found {name!r}")
        else:
            arguments |= _flatten_arguments(f"{key}.{name}", part, origin, problems)
    return arguments


def _did_you_mean(key: str) -> str:
    name = key.rpartition(".")[2]
    close = difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.85)
    close = close or [known for known in _KEYS if known.rpartition(".")[2] == name][:3]
    if not close:
        names = {known.rpartition(".")[2]: known for known in _KEYS}
        close = [names[match] for match in difflib.get_close_matches(name, names, n=1, cutoff=0.75)]
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _accepts(key: str, value: Any, origin: str, problems: list[str]) -> bool:
    """Whether the schema takes the value; appends the problem when it does not."""
    leaf = typing.cast(_Leaf, _leaf_of(key))
    is_list = typing.get_origin(leaf.hint) is tuple
    items, item_hint = (value, typing.get_args(leaf.hint)[0]) if is_list else ([value], leaf.hint)
    if leaf.hint == _ARGUMENTS:
        items = value if isinstance(value, list) else [value]
    fits = leaf.hint == _ARGUMENTS or (
        isinstance(items, list) and all(_may_become(item_hint, item) and item != "???" for item in items)
    )
    if fits and leaf.hint != _ARGUMENTS:
        try:
            OmegaConf.merge(_alone(leaf.hint), {"value": value})
        except OmegaConfBaseException:
            fits = False
    if not fits:
        problems.append(f"{origin}: {key}: expected {_described(leaf.hint)}, found {_shown(value)}")
    named = (
        [match[1] for item in items if isinstance(item, str) for match in _FROM_ENVIRONMENT.finditer(item)]
        if fits
        else []
    )
    if secret := next((name for name in named if SECRET_NAME.search(name)), None):
        problems.append(
            f"{origin}: {key}: expected no secret (it would be written to config.yaml, MLflow and the report), found the "
            f"environment variable {secret}"
        )
        return False
    return fits


@cache
def _alone(hint: Any) -> DictConfig:
    """A section with one setting of this type: merging a value into a whole section copies all of its settings."""
    return OmegaConf.structured(
        dataclasses.make_dataclass("Setting", [("value", hint, dataclasses.field(default="???"))])
    )


def _may_become(hint: Any, value: Any) -> bool:
    """False where OmegaConf would turn lists into text, or truth values into text and numbers."""
    return not isinstance(value, list | dict) and not (isinstance(value, bool) and hint in (str, int, float))


def _described(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return {int: "a list of integers", float: "a list of numbers"}.get(typing.get_args(hint)[0], "a list of texts")
    return {int: "an integer", float: "a number", bool: "true or false", str: "text"}[hint]


def _shown(value: Any) -> str:
    return "nothing" if value is None else f"{value!r} ({type(value).__name__})"


@cache
def _defaults() -> DictConfig:
    return OmegaConf.structured(RunConfig)


def _merged(settings: Mapping[str, Any], refused: set[str]) -> DictConfig:
    """The schema's defaults with every setting that was not refused."""
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in refused:
            *sections, name = key.split(".")
            node = tree
            for section in sections:
                node = node.setdefault(section, {})
            node[name] = value
    return typing.cast(DictConfig, OmegaConf.merge(_defaults(), tree))


def _escaped(text: str) -> str:
    """Text that OmegaConf does not take for an interpolation: `${x}` → `\\${x}`."""
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + "\\${", text)


def _map_text(tree: Any, change: typing.Callable[[str], str]) -> Any:
    """The tree with every text changed and tuples as lists."""
    if isinstance(tree, str):
        return change(tree)
    if isinstance(tree, Mapping):
        return {name: _map_text(value, change) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_map_text(value, change) for value in tree]
    return tree


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
