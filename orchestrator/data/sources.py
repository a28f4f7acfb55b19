"""Rows of a hub dataset or a local file, and the fields that the config names in them.

Presets say where well-known datasets keep question and answer; settings that were changed from their defaults win.
"""

import itertools
import json
import math
import re
import string
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from configs.built_ins import TASK_SOURCES
from configs.checks.data import field_names
from configs.errors import UserError
from configs.functions import is_task_function, load_function
from configs.models import DATA_FORMATS, data_format, is_local_data
from configs.schema.data import SftSource, TaskSource
from orchestrator.data.local_rows import WrittenNumber, find_files, read_csv_files, read_json_files
from rewards.base import THINK_CLOSE, THINK_OPEN

Row = Mapping[str, Any]
AnySource = TypeVar("AnySource", TaskSource, SftSource)

MAX_FUNCTION_ROWS = 10_000_000
"""A function that never ends must not fill the memory."""
_CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Fields beside a turn's content that hold its thought."""
_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}

TaskRows = Callable[..., Iterable[Row]]
"""`(**args)`: what `data.*.source` may name. Rows are mappings of fields, read as those of a file; the same call gives the same rows
in the same order, so that a run can be resumed."""


class Rows(Sequence[Row]):
    """Rows in the order of the file, memory-mapped; `where(index)` names one in errors."""

    def __init__(self, name: str, rows: Any):
        self.name, self._rows = name, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._rows)  # of a table in batches, which is far faster than row by row

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
    rows: Any
    if is_task_function(source.source):
        rows = _call(source)
    elif not is_local_data(source.source):
        rows = _load_hub(datasets, source)
    elif (
        isinstance(source, TaskSource)
        and (kind := data_format((files := find_files(source.source))[0].name)) != "parquet"
    ):
        read = read_csv_files(files) if kind == "csv" else read_json_files(files, source.rows_field)
        rows = _split_of(datasets, read, source)
    else:
        rows = _load_files(datasets, source, find_files(source.source))
    if len(rows) == 0:
        raise UserError(f"{source.source}: expected rows in split {source.split}, found none")
    if limit:
        rows = rows[:limit] if isinstance(rows, list) else rows.select(range(min(limit, len(rows))))
    return Rows(source.source, rows)


def preset_hint(key: str, source: TaskSource | SftSource) -> str:
    """What to add to a complaint about rows of `key`: a shipped configuration may have chosen a preset for other rows."""
    if source.preset == "none" or not key.startswith("data."):
        return ""
    return f" (read by {key}.preset={source.preset}; {key}.preset=none takes the fields as the settings name them)"


def render(template: str, row: Row, where: str) -> str:
    """Fill a template from row fields. Raises ValueError naming row and field when one is missing or empty."""
    field_names(template)
    parts = string.Formatter().parse(template)
    filled = (text + (format(_fill(row, name, where), form or "") if name else "") for text, name, form, _ in parts)
    return "".join(filled).strip()


def _fill(row: Row, name: str, where: str) -> str:
    """A field as text, a list of texts line by line; one that ends in `?` may be missing or empty."""
    if name.endswith("?") and find_field(row, name[:-1]) in (None, "", []):
        return ""
    name = name.removesuffix("?")
    lines = find_field(row, name)
    if isinstance(lines, list) and lines and all(isinstance(line, str) for line in lines):
        return "\n".join(lines)
    return read_text(row, name, where)


def read_text(row: Row, field: str, where: str) -> str:
    """A field as text, numbers as they were written; a whole one written as 43.0 becomes 43. Parts of a message's content
    (`[{"type": "text", "text": …}]`) are joined. Raises ValueError naming row and field, for a missing number (NaN) too."""
    value = _read(row, field, where)
    if (
        isinstance(value, list)
        and value
        and all(isinstance(part, Mapping) and part.get("type") == "text" for part in value)
    ):
        value = "".join(str(part.get("text") or "") for part in value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        found = type(value).__name__
        raise UserError(f"{where}: expected text or a number in field {field!r}, found {found}")
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(f"{where}: expected text or a number in field {field!r}, found {value} (a missing value?)")
        return _as_written(value)
    return str(value)


def _as_written(value: float) -> str:
    """Every digit, without an exponent that was not there: 0.00005 stays, 43.0 becomes 43."""
    text = value.text if isinstance(value, WrittenNumber) else format(Decimal(repr(value)), "f")
    return text.rstrip("0").rstrip(".") if re.fullmatch(r"[+-]?\d+\.0+", text) else text


def read_answer(row: Row, source: TaskSource, where: str) -> str:
    """The reference answer: the pattern's last match in the answer field, or all of it; empty where rows have none."""
    if not source.answer_field:
        return ""
    text = read_text(row, source.answer_field, where)
    if not source.answer_pattern:
        return text.strip()
    matches = re.findall(source.answer_pattern, text)
    if not matches or not matches[-1].strip():
        raise UserError(
            f"{where}: expected a match of answer_pattern {source.answer_pattern!r} in field "
            f"{source.answer_field!r}, found {text[-80:]!r}"
        )
    return matches[-1].strip()


def read_fields(row: Row, names: Sequence[str], where: str) -> dict[str, Any]:
    """What the verifier is told of a row, as JSON can hold it. Raises UserError naming row and field."""
    fields = {
        name.removesuffix("?"): _read(row, name.removesuffix("?"), where)
        for name in names
        if not name.endswith("?") or find_field(row, name[:-1]) not in (None, "", [])
    }
    for name, value in fields.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{where}: expected text, numbers, lists and objects in field {name!r}, found {error}"
            ) from error
    return fields


def read_budget(row: Row, source: TaskSource, where: str) -> int | None:
    """The row's own budget in tokens; None when the source names no field for it, or the row leaves it empty.

    Raises ValueError for anything but a whole number above 0.
    """
    value = find_field(row, source.budget_field) if source.budget_field else None
    if value is None or value == "":
        return None
    if isinstance(value, float) and math.isnan(value):
        return None
    try:
        budget_tokens = int(value) if isinstance(value, float) and value.is_integer() else int(str(value))
    except ValueError:
        budget_tokens = 0
    if budget_tokens < 1:
        raise UserError(f"{where}: field {source.budget_field!r}: expected a number of tokens above 0, found {value!r}")
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


def find_field(row: Row, name: str) -> Any:
    """The value under a name, or inside nested fields under a name with dots; None when there is none."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def read_messages(row: Row, template: str, where: str) -> list[dict[str, str]] | None:
    """The turns of a row whose prompt is a list of them (the template is that one field); None for a prompt of text.

    Raises ValueError when the last turn is no user's.
    """
    names = field_names(template)
    if len(names) != 1 or template.strip() != f"{{{names[0]}}}" or not isinstance(find_field(row, names[0]), list):
        return None
    turns = read_turns(row, names[0], where)
    if not turns or turns[-1]["role"] != "user":
        found = turns[-1]["role"] if turns else "none"
        raise UserError(f"{where}: expected a user's turn at the end of field {names[0]!r}, found {found}")
    return turns


def _read(row: Row, field: str, where: str) -> Any:
    value = find_field(row, field)
    if value is None or value == "" or (isinstance(value, str) and not value.strip()):
        state = "an empty one" if value is not None else "none"
        there = ", ".join(name for name, other in row.items() if other is not None)
        raise UserError(f"{where}: expected a field {field!r}, found {state}; fields there: {there or 'none'}")
    return value


def _read_turns(row: Row, field: str, where: str) -> list[dict[str, str]]:
    """Those up to the last of an assistant."""
    turns = read_turns(row, field, where)
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    if not turns:
        raise UserError(f"{where}: expected an assistant's turn in field {field!r}, found none")
    return turns


def read_turns(row: Row, field: str, where: str) -> list[dict[str, str]]:
    """Chat turns as role and content; a thought that stands beside the content comes before it. Raises ValueError naming
    row, turn and role."""
    raw_turns = _read(row, field, where)
    if not isinstance(raw_turns, list) or not all(isinstance(turn, Mapping) for turn in raw_turns):
        raise UserError(f"{where}: expected a list of turns in field {field!r}, found {type(raw_turns).__name__}")
    turns = []
    for number, turn in enumerate(raw_turns, start=1):
        turn_where = f"{where}, turn {number} of {field}"
        role_key, text_key = ("from", "value") if turn.get("from") is not None else ("role", "content")
        role = read_text(turn, role_key, turn_where)
        if role not in _ROLES:
            raise UserError(f"{turn_where}: expected a role of {', '.join(_ROLES)}, found {role!r}")
        content = read_text(turn, text_key, turn_where)
        thought = next((turn[name] for name in _THOUGHTS if isinstance(turn.get(name), str) and turn[name].strip()), "")
        if thought and THINK_OPEN not in content:
            content = f"{THINK_OPEN}\n{thought.strip()}\n{THINK_CLOSE}\n\n{content}"
        turns.append({"role": _ROLES[role], "content": content})
    return turns


def _call(source: TaskSource | SftSource) -> list[Row]:
    """The rows that a function returns."""
    key = "data source"
    returned = load_function(key, source.source, TASK_SOURCES)(**source.source_args)
    if not isinstance(returned, Iterable):
        raise UserError(f"{source.source}: expected rows from the function, found {type(returned).__name__}")
    rows: list[Row] = []
    for number, row in enumerate(itertools.islice(returned, MAX_FUNCTION_ROWS + 1), start=1):
        if not isinstance(row, Mapping):
            raise UserError(f"{source.source}, row {number}: expected a mapping of fields, found {type(row).__name__}")
        rows.append(row)
    if len(rows) > MAX_FUNCTION_ROWS:
        raise UserError(f"{source.source}: expected at most {MAX_FUNCTION_ROWS:,} rows from the function, found more")
    return rows


def _split_of(datasets: Any, rows: list[Row], source: TaskSource) -> list[Row]:
    """The slice that `split` names: files are one split, so its name does not matter."""
    name = re.split(r"\W", source.split, maxsplit=1)[0]
    try:
        (part,) = datasets.ReadInstruction.from_spec(source.split).to_absolute({name: len(rows)})
    except (ValueError, AssertionError) as error:
        raise UserError(
            f"{source.source}: expected a split such as train or test[:100], found {source.split!r} ({error})"
        ) from error
    return rows[part.from_ : part.to]


def _load_files(datasets: Any, source: TaskSource | SftSource, files: list[Path]) -> Any:
    kind = data_format(files[0].name)
    rows_field = source.rows_field if isinstance(source, TaskSource) else ""
    options: dict[str, Any] = {"field": rows_field} if rows_field and kind == "json" else {}
    if files[0].name.lower().endswith(".tsv"):
        options = {"sep": "\t"}
    # Files are one split; naming it as the config does lets slices such as train[:100] work.
    name = re.split(r"\W", source.split, maxsplit=1)[0]
    try:
        return datasets.load_dataset(
            kind, data_files={name: [str(file) for file in files]}, split=source.split, **options
        )
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise UserError(f"{_unreadable(files, kind, error)}") from error


def _unreadable(files: list[Path], kind: str, error: BaseException) -> str:
    """Which file cannot be read and why: the first bad line of JSON, else what the reader said."""
    for file in files:
        try:
            if kind == "json":
                read_json_files([file], "")
            elif kind == "parquet":
                import pyarrow.parquet

                if pyarrow.parquet.ParquetFile(file).metadata.num_rows == 0:
                    return f"{file}: expected rows, found none"
        except UserError as bad:
            return str(bad)
        except (OSError, ValueError) as bad:
            return f"{file}: expected a {kind} file, found something else ({_first_line(bad)})"
    return f"{', '.join(map(str, files[:3]))}: expected a table of rows, found something else ({_first_line(error.__cause__ or error)})"


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _load_hub(datasets: Any, source: TaskSource | SftSource) -> Any:
    try:
        return datasets.load_dataset(source.source, source.subset or None, split=source.split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"dataset {source.source!r}, subset {source.subset or 'none'}, split {source.split!r}: cannot be loaded from "
            f"the hub ({str(error).splitlines()[0] if str(error) else type(error).__name__}). To use a local file, give "
            f"`source` a path that ends in {', '.join(DATA_FORMATS)}."
        ) from error
