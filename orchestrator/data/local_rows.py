"""Rows of local JSON files as they were written: numbers keep their digits, bad lines are named.

`datasets` makes 64-bit numbers of them, so `0.00005` comes back as `5e-05` and long integers lose their end. Tasks are read
here; SFT rows, which may be many gigabytes, and other formats stay with `datasets`.
"""

import csv
import glob
import gzip
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from configs.errors import UserError
from configs.models import DATA_FORMATS, data_format


class WrittenNumber(float):
    """A number with a point or an exponent that remembers how it was written."""

    text: str

    def __new__(cls, text: str) -> "WrittenNumber":
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __reduce__(self) -> tuple[Any, ...]:
        return WrittenNumber, (self.text,)


def find_files(source: str) -> list[Path]:
    """The data files that a path names: itself, all below a directory, or what matches a pattern; in the order of their
    names. Raises UserError naming the path when there is none, or when they are of several formats."""
    path = Path(source).expanduser()
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.is_file() and data_format(file.name))
        if not found:
            raise UserError(f"{source}: expected data files ({', '.join(DATA_FORMATS)}) in the directory, found none")
    elif path.is_file():
        found = [path]
    elif glob.has_magic(source):
        found = sorted(file for name in glob.glob(str(path), recursive=True) if (file := Path(name)).is_file())
        if not found:
            raise UserError(f"{source}: expected data files that match the pattern, found none")
    else:
        raise UserError(f"expected a data file, found no file {path}")
    formats = {data_format(file.name): file for file in found}
    if "" in formats:
        raise UserError(f"{formats['']}: expected a file that ends in {', '.join(DATA_FORMATS)}")
    if len(formats) > 1:
        raise UserError(f"{source}: expected files of one format, found {' and '.join(map(str, formats.values()))}")
    for file in found:
        if file.stat().st_size == 0:
            raise UserError(f"{file}: expected rows, found an empty file")
        with file.open("rb") as data:
            if data.read(24).startswith(b"version https://git-lfs"):
                raise UserError(f"{file}: expected data, found a pointer of Git LFS; fetch it with `git lfs pull`")
    return found


def read_json_files(files: Sequence[Path], rows_field: str) -> list[Mapping[str, Any]]:
    """All rows. Raises UserError naming file and line."""
    rows: list[Mapping[str, Any]] = []
    for file in files:
        found = list(_read_json(file, rows_field))
        if not found:
            raise UserError(f"{file}: expected rows, found none")
        rows += found
    return rows


def read_csv_files(files: Sequence[Path]) -> list[Mapping[str, Any]]:
    """All rows as text, so that numbers stay as they were written. Raises UserError naming the file."""
    rows: list[Mapping[str, Any]] = []
    for file in files:
        try:
            with file.open(encoding="utf-8-sig", newline="") as text:
                found = list(csv.DictReader(text, delimiter="\t" if file.name.lower().endswith(".tsv") else ","))
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{file}: expected a table of text, found something else ({error})") from error
        if not found:
            raise UserError(f"{file}: expected rows below a line with the names of the fields, found none")
        rows += found
    return rows


def _read_json(file: Path, rows_field: str) -> Iterator[Mapping[str, Any]]:
    with _open(file) as text:
        if _is_whole(file):
            yield from _rows_of(file, _load(text.read(), str(file)), rows_field)
            return
        for number, line in enumerate(text, start=1):
            if line.strip():
                row = _load(line, f"{file}: line {number}")
                if not isinstance(row, dict):
                    raise UserError(f"{file}: line {number}: expected a JSON object, found {line.strip()[:60]!r}")
                yield row


def _is_whole(file: Path) -> bool:
    """One JSON value, not a line for each row; some write lines into files that end in .json."""
    if not file.name.lower().removesuffix(".gz").endswith(".json"):
        return False
    with _open(file) as text:
        first = text.readline().strip()
    if first[:1] == "[":
        return True
    try:
        json.loads(first)
    except ValueError:
        return True
    with _open(file) as text:
        return sum(1 for line in text if line.strip()) == 1


def _rows_of(file: Path, value: Any, rows_field: str) -> list[Mapping[str, Any]]:
    if rows_field:
        if not isinstance(value, dict) or rows_field not in value:
            there = ", ".join(value) if isinstance(value, dict) else f"a {type(value).__name__}"
            raise UserError(f"{file}: expected a field {rows_field!r} with the rows (rows_field), found {there:.200}")
        value = value[rows_field]
    elif isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise UserError(f"{file}: expected a list of rows, found a {type(value).__name__}")
    for number, row in enumerate(value, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{file}, row {number}: expected a JSON object, found {row!r:.60}")
    return value


def _load(text: str, where: str) -> Any:
    try:
        return json.loads(
            text, parse_float=WrittenNumber, parse_constant=lambda name: math.nan if name == "NaN" else math.inf
        )
    except ValueError as error:
        raise UserError(f"{where}: expected a JSON object, found {text.strip()[:60]!r} ({error})") from error


def _open(file: Path) -> IO[str]:
    if file.name.lower().endswith(".gz"):
        return gzip.open(file, "rt", encoding="utf-8", errors="replace")
    return file.open(encoding="utf-8-sig", errors="replace")
