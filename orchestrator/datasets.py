"""Rows of a hub dataset or a local file, and the fields that the config names in them.

Presets say where well-known datasets keep question and answer; settings that were changed from their defaults win.
"""

import dataclasses
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from configs.checks import field_names
from configs.data_schema import SftSource, TaskSource
from configs.models import looks_like_path

Row = Mapping[str, Any]
AnySource = TypeVar("AnySource", TaskSource, SftSource)

_FORMATS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}
_CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")
_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}

_WITH_CHOICES = "{question}\n\n{choices}"

TASK_PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    "gsm8k": {"answer_pattern": r"#### ([-0-9.,]+)"},
    "math500": {"question_template": "{problem}"},
    "svamp": {"question_template": "{Body} {Question}", "answer_field": "Answer"},
    "addsub": {"question_template": "{input}", "answer_field": "target"},
    "aime": {"question_template": "{problem}"},
    "amc": {},
    "mmlu": {"question_template": _WITH_CHOICES, "choice_fields": ("choices",)},
    "gpqa": {
        "question_template": "{Question}\n\n{choices}",
        "choice_fields": ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
    },
    "strategyqa": {
        "rows_field": "examples",
        "question_template": "{input}",
        "labels": ("yes", "no"),
        "answer_field": "target_scores",
    },
}
SFT_PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    # `solution … #### n`: the answer's mark is one that scoring knows, so it stays.
    "gsm8k": {"prompt_template": "{question}", "completion_template": "{answer}"},
    "openthoughts3": {"layout": "messages", "messages_field": "conversations"},
    "mixture_of_thoughts": {"layout": "messages", "messages_field": "messages"},
}


class Rows(Sequence[Row]):
    """Rows in the order of the file, memory-mapped; `where(index)` names one in errors."""

    def __init__(self, name: str, rows: Any):
        self.name, self._rows = name, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index]

    def where(self, index: int) -> str:
        """For people: the first row is row 1."""
        return f"{self.name}, row {index + 1}"


def load_rows(source: TaskSource | SftSource) -> Rows:
    """All rows of a source, or the first `num_tasks` (`num_rows`).

    Raises ValueError naming the file, or the hub name and how to use a file instead.
    """
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    limit = source.num_tasks if isinstance(source, TaskSource) else source.num_rows
    if looks_like_path(source.source):
        rows_field = source.rows_field if isinstance(source, TaskSource) else ""
        rows = _load_file(datasets, Path(source.source).expanduser(), source.split, rows_field)
    else:
        rows = _load_hub(datasets, source)
    if len(rows) == 0:
        raise ValueError(f"{source.source}: expected rows in split {source.split}, found none")
    return Rows(source.source, rows.select(range(min(limit, len(rows)))) if limit else rows)


def apply_preset(source: AnySource) -> AnySource:
    """The source with its preset's settings wherever the config left the default."""
    preset = (TASK_PRESETS if isinstance(source, TaskSource) else SFT_PRESETS)[source.preset]
    defaults = {field.name: field.default for field in dataclasses.fields(source)}
    changes = {name: value for name, value in preset.items() if getattr(source, name) == defaults[name]}
    return dataclasses.replace(source, **changes)


def render(template: str, row: Row, where: str) -> str:
    """Fill a template from row fields. Raises ValueError naming row and field when one is missing or empty."""
    return template.format(**{name: read_text(row, name, where) for name in field_names(template)}).strip()


def read_text(row: Row, field: str, where: str) -> str:
    """A field as text; a whole number written as 43.0 becomes 43. Raises ValueError naming row and field."""
    value = _read(row, field, where)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        found = type(value).__name__
        raise ValueError(f"{where}: expected text or a number in field {field!r}, found {found}")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def read_answer(row: Row, source: TaskSource, where: str) -> str:
    """The reference answer: the pattern's last match in the answer field, or all of it."""
    text = read_text(row, source.answer_field, where)
    if not source.answer_pattern:
        return text.strip()
    matches = re.findall(source.answer_pattern, text)
    if not matches or not matches[-1].strip():
        raise ValueError(
            f"{where}: expected a match of answer_pattern {source.answer_pattern!r} in field "
            f"{source.answer_field!r}, found {text[-80:]!r}"
        )
    return matches[-1].strip()


def read_budget(row: Row, source: TaskSource, where: str) -> int | None:
    """The row's own budget in tokens; None when the source names no field for it, or the row leaves it empty.

    Raises ValueError for anything but a whole number above 0.
    """
    value = row.get(source.budget_field) if source.budget_field else None
    if value is None or value == "":
        return None
    try:
        budget_tokens = int(str(value))
    except ValueError:
        budget_tokens = 0
    if budget_tokens < 1:
        raise ValueError(
            f"{where}: field {source.budget_field!r}: expected a number of tokens above 0, found {value!r}"
        )
    return budget_tokens


def read_conversation(row: Row, source: SftSource, where: str) -> list[dict[str, str]]:
    """The row as chat turns, ending with an assistant's; the config's system prompt first, if it has one.

    Raises ValueError naming row and field for a missing or empty field, an unknown role, or no assistant's turn.
    """
    if source.layout == "prompt_completion":
        completion = render(source.completion_template, row, where)
        if source.preset == "gsm8k":
            completion = _CALCULATOR_MARK.sub("", completion)
        turns = [
            {"role": "user", "content": render(source.prompt_template, row, where)},
            {"role": "assistant", "content": completion},
        ]
    else:
        turns = _read_turns(row, source.messages_field, where)
    return with_system_prompt(turns, source.system_prompt)


def with_system_prompt(turns: list[dict[str, str]], system_prompt: str) -> list[dict[str, str]]:
    """The turns with a system prompt in front; their own takes precedence."""
    if not system_prompt or turns[0]["role"] == "system":
        return turns
    return [{"role": "system", "content": system_prompt}, *turns]


def _read(row: Row, field: str, where: str) -> Any:
    value = row.get(field)
    if value is None or value == "" or (isinstance(value, str) and not value.strip()):
        state = "an empty one" if value is not None else "none"
        there = ", ".join(name for name, other in row.items() if other is not None)
        raise ValueError(f"{where}: expected a field {field!r}, found {state}; fields there: {there or 'none'}")
    return value


def _read_turns(row: Row, field: str, where: str) -> list[dict[str, str]]:
    raw_turns = _read(row, field, where)
    if not isinstance(raw_turns, list) or not all(isinstance(turn, Mapping) for turn in raw_turns):
        raise ValueError(f"{where}: expected a list of turns in field {field!r}, found {type(raw_turns).__name__}")
    turns = []
    for number, turn in enumerate(raw_turns, start=1):
        turn_where = f"{where}, turn {number} of {field}"
        role_key, text_key = ("from", "value") if turn.get("from") is not None else ("role", "content")
        role = read_text(turn, role_key, turn_where)
        if role not in _ROLES:
            raise ValueError(f"{turn_where}: expected a role of {', '.join(_ROLES)}, found {role!r}")
        turns.append({"role": _ROLES[role], "content": read_text(turn, text_key, turn_where)})
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    if not turns:
        raise ValueError(f"{where}: expected an assistant's turn in field {field!r}, found none")
    return turns


def _load_file(datasets: Any, path: Path, split: str, rows_field: str) -> Any:
    if not path.is_file():
        raise ValueError(f"expected a data file, found no file {path}")
    if path.suffix not in _FORMATS:
        raise ValueError(f"{path}: expected a file that ends in {', '.join(_FORMATS)}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: expected rows, found an empty file")
    try:
        # A file is one split; naming it as the config does lets slices such as train[:100] work.
        name = re.split(r"\W", split, maxsplit=1)[0]
        options = {"field": rows_field} if rows_field else {}
        return datasets.load_dataset(_FORMATS[path.suffix], data_files={name: str(path)}, split=split, **options)
    except datasets.exceptions.DatasetGenerationError as error:
        raise ValueError(f"{path}: {_why_unreadable(path, error.__cause__ or error)}") from error


def _why_unreadable(path: Path, error: BaseException) -> str:
    """The first line of a JSON Lines file that is not a JSON object, else what the reader said."""
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, start=1):
                try:
                    if line.strip() and not isinstance(json.loads(line), dict):
                        return f"line {number}: expected a JSON object, found {line.strip()[:60]!r}"
                except ValueError as bad:
                    return f"line {number}: expected a JSON object, found {line.strip()[:60]!r} ({bad})"
    return f"expected a table of rows, found something else ({error})"


def _load_hub(datasets: Any, source: TaskSource | SftSource) -> Any:
    try:
        return datasets.load_dataset(source.source, source.subset or None, split=source.split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"dataset {source.source!r}, subset {source.subset or 'none'}, split {source.split!r}: cannot be loaded from "
            f"the hub ({str(error).splitlines()[0] if str(error) else type(error).__name__}). To use a local file, give "
            f"`source` a path that ends in {', '.join(_FORMATS)}."
        ) from error
