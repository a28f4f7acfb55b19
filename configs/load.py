"""YAML files and `key=value` overrides become one frozen `RunConfig`; every problem is found at once."""

import dataclasses
import json
import operator
import os
import re
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.checks.run import problems as config_problems
from configs.errors import UserError
from configs.keys import (
    ARGUMENTS,
    KEYS,
    LISTS,
    Leaf,
    described,
    leaf_of,
    places,
    with_number,
)
from configs.layers import COMMAND_LINE, combined, first_line, read_file, read_overrides, shown
from configs.schema.run import RunConfig
from configs.secrets import SECRET_NAME

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


def load_config(path: Path | str | None, overrides: Sequence[str] | Mapping[str, Any] = ()) -> RunConfig:
    """The defaults of `configs.schema`, then the YAML file, then the overrides; later ones win.

    `path` is a YAML file, or the bare name of one that this package ships (`quickstart`). Overrides are dotted keys with
    their values, `{"budget.buckets_tokens": [40, 80]}`, or what a command line has, `budget.buckets_tokens=[40,80]`,
    with a YAML value; there text settings take the value as it stands, unless it is in quotes. OmegaConf's interpolations, such as `${oc.env:HOME}`, are resolved.

    Raises ConfigError with all problems: of the file, of keys, of types, and what `configs.checks` finds.
    """
    problems: list[str] = []
    file_settings = read_file(path, problems) if path is not None else {}
    broken_file = bool(problems) and not file_settings
    override_settings = read_overrides(as_overrides(overrides), problems)
    settings, counts, origins = combined({str(path): file_settings, COMMAND_LINE: override_settings}, problems)
    refused = {key for key, value in settings.items() if not _accepts(key, value, origins[key], problems)}
    merged = _merged(settings, counts, refused)
    for key in [key for key in settings if key not in refused]:
        try:
            OmegaConf.select(merged, with_number(key))
        except OmegaConfBaseException as error:
            problems.append(f"{origins[key]}: {key}: {first_line(error)}")
            refused.add(key)
            merged = _merged(settings, counts, refused)
    config = _as_config(merged)
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


def dump_config(config: RunConfig) -> str:
    """Complete YAML that `load_config` reads back to an equal config."""
    tree = _map_text(dataclasses.asdict(config), _escaped)
    for key in LISTS:
        section, _, name = key.rpartition(".")
        if len(tree[section][name]) == 1:
            (tree[section][name],) = tree[section][name]
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
    for name, leaf in KEYS.items():
        for key, value in places(config, name) if leaf is not None else ():
            if isinstance(value, dict):
                flat |= {f"{key}.{argument}": json.dumps(part) for argument, part in value.items()}
            else:
                flat[key] = ",".join(map(str, value)) if isinstance(value, tuple) else value
    return flat


def _accepts(key: str, value: Any, origin: str, problems: list[str]) -> bool:
    """Whether the schema takes the value; appends the problem when it does not."""
    leaf = typing.cast(Leaf, leaf_of(key))
    is_list = typing.get_origin(leaf.hint) is tuple
    items, item_hint = (value, typing.get_args(leaf.hint)[0]) if is_list else ([value], leaf.hint)
    if leaf.hint == ARGUMENTS:
        items = value if isinstance(value, list) else [value]
    fits = leaf.hint == ARGUMENTS or (
        isinstance(items, list) and all(_may_become(item_hint, item) and item != "???" for item in items)
    )
    if fits and leaf.hint != ARGUMENTS:
        try:
            OmegaConf.merge(_alone(leaf.hint), {"value": value})
        except OmegaConfBaseException:
            fits = False
    if not fits:
        problems.append(f"{origin}: {key}: expected {described(leaf.hint)}, found {shown(value)}")
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


@cache
def _defaults() -> DictConfig:
    return OmegaConf.structured(RunConfig)


@cache
def _default_item(name: str) -> DictConfig:
    """What an item of a list of sections has where it says nothing, as the list's own default: held-out tasks for evaluation."""
    return OmegaConf.structured(operator.attrgetter(name)(RunConfig())[0])


def _merged(settings: Mapping[str, Any], counts: Mapping[str, int], refused: set[str]) -> DictConfig:
    """The schema's defaults with every setting that was not refused."""
    tree: dict[str, Any] = {}
    for name, count in counts.items():
        section, _, last = name.rpartition(".")
        tree.setdefault(section, {})[last] = {str(number): {} for number in range(count)}
    for key, value in settings.items():
        if key not in refused:
            *sections, name = with_number(key).split(".")
            node = tree
            for section in sections:
                node = node.setdefault(section, {})
            node[name] = value
    for name in counts:
        section, _, last = name.rpartition(".")
        tree[section][last] = list(tree[section][last].values())
    return typing.cast(DictConfig, OmegaConf.merge(_defaults(), tree))


def _as_config(merged: DictConfig) -> RunConfig:
    """OmegaConf leaves the items of a list of sections as they are: here they become sections."""
    config = typing.cast(RunConfig, OmegaConf.to_object(merged))
    lists: dict[str, Any] = {}
    for name in LISTS:
        items = _map_text([dict(item) for item in operator.attrgetter(name)(config)], _escaped)
        made = [OmegaConf.to_object(OmegaConf.merge(_default_item(name), item)) for item in items]
        lists[name.rpartition(".")[2]] = tuple(made)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **lists))


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
