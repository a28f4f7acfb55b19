r"""Programs in completions, and the tests of a task: what is run, and whether an output is right. Plain text work.

Tests come in the forms that public datasets have them in, by the names of their row fields:

| fields | form |
|---|---|
| `tests` | a list of `{"input": …, "output": …}` (standard input and output), or of assertions as texts |
| `test`, `entry_point`, `prompt` | HumanEval(+): code that defines `check(candidate)` |
| `test` | MBPP+: code that asserts |
| `test_list`, `test_setup_code` or `test_imports` | MBPP(+): a list of assertions |
| `public_test_cases`, `private_test_cases`, `metadata` | LiveCodeBench: JSON, the private ones packed |
"""

import base64
import io
import json
import pickle
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.base import THINK_CLOSE, BadReference

_BLOCK = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)
_LANGUAGES = {"", "python", "python3", "py"}
_IMPORT = re.compile(r"^(?:from\s+\S+\s+import\s+.+|import\s+.+)$", re.MULTILINE)
MAX_TESTS = 1000
MAX_PACKED_BYTES = 64 * 2**20
"""Of private tests when they are unpacked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One program to run, and what makes it right.

    Example: `Run(program="print(input())", stdin="7", output="7")`, `Run(program="def f(): …", assertions="assert f() == 1")`
    """

    program: str
    stdin: str = ""
    output: str | None = None
    """Expected on standard output; None: the assertions decide"""
    assertions: str = ""
    """Run after the program, in its namespace"""


def extract_code(text: str) -> str:
    """The last block of Python code behind the thought; empty when there is none.

    A block is fenced (```` ```python ````). A block that is cut at its end, or in another language, is no code.
    """
    answer = text.rpartition(THINK_CLOSE)[2]
    blocks = [code for language, code in _BLOCK.findall(answer) if language.lower() in _LANGUAGES]
    return blocks[-1] if blocks and blocks[-1].strip() else ""


def make_runs(code: str, fields: Mapping[str, Any]) -> list[Run]:
    """What has to be run to judge a program, test after test. Raises BadReference when the fields hold no tests."""
    if "test" in fields and "entry_point" in fields:
        return [_human_eval(code, fields)]
    if "test" in fields:
        return [_assertions(code, [str(fields["test"])], _setup(fields))]
    if "test_list" in fields:
        return [_assertions(code, fields["test_list"], _setup(fields))]
    if "public_test_cases" in fields or "private_test_cases" in fields:
        return _live_code_bench(code, fields)
    tests = fields.get("tests")
    if isinstance(tests, str):
        tests = _parse(tests, "tests")
    if not isinstance(tests, Sequence) or not tests:
        raise BadReference(
            f"code: expected tests, or test and entry_point, or test_list, or public_test_cases among the fields of "
            f"verifier_fields, found {', '.join(fields) or 'none'}"
        )
    if all(isinstance(test, str) for test in tests):
        return [_assertions(code, tests, _setup(fields))]
    return [_stdin_run(code, test) for test in tests[:MAX_TESTS]]


def same_output(found: str, expected: str) -> bool:
    """Equal line by line, but for white space at the ends of lines and of the whole; numbers within 1e-9 of their size count as equal.

    Example: `1.50 \n` and `1.5` → True.
    """
    lines = [[line.rstrip() for line in text.strip().splitlines()] for text in (found, expected)]
    if lines[0] == lines[1]:
        return True
    words = [[word for line in one for word in line.split()] for one in lines]
    return (
        len(lines[0]) == len(lines[1])
        and len(words[0]) == len(words[1])
        and all(_same_word(one, other) for one, other in zip(*words, strict=True))
    )


def _same_word(found: str, expected: str) -> bool:
    if found == expected:
        return True
    try:
        one, other = float(found), float(expected)
    except ValueError:
        return False
    return abs(one - other) <= 1e-9 * max(1.0, abs(one), abs(other))


def _human_eval(code: str, fields: Mapping[str, Any]) -> Run:
    prompt, entry_point = str(fields.get("prompt", "")), str(fields["entry_point"])
    if not entry_point.isidentifier():
        raise BadReference(f"code: expected the name of a function in entry_point, found {entry_point!r:.60}")
    defines = re.search(rf"^\s*(?:async\s+)?(?:def\s+{entry_point}\b|{entry_point}\s*=)", code, re.MULTILINE)
    # A completion may leave out the imports of its prompt, or go on where the prompt's function begins.
    program = "\n".join(_IMPORT.findall(prompt)) + "\n" + code if defines else prompt + "\n" + code
    return Run(program=program, assertions=f"{fields['test']}\ncheck({entry_point})\n")


def _assertions(code: str, assertions: Any, setup: str) -> Run:
    if not isinstance(assertions, Sequence) or not all(isinstance(line, str) for line in assertions) or not assertions:
        raise BadReference(f"code: expected assertions as texts, found {assertions!r:.80}")
    return Run(program=code, assertions="\n".join([setup, *assertions]))


def _setup(fields: Mapping[str, Any]) -> str:
    setup = fields.get("test_setup_code") or fields.get("test_imports") or ""
    return "\n".join(setup) if isinstance(setup, list) else str(setup)


def _stdin_run(code: str, test: Any) -> Run:
    if not isinstance(test, Mapping) or not {"input", "output"} <= test.keys():
        raise BadReference(f"code: expected a test with input and output, found {test!r:.80}")
    return Run(program=code, stdin=str(test["input"]), output=str(test["output"]))


def _live_code_bench(code: str, fields: Mapping[str, Any]) -> list[Run]:
    tests = [
        test
        for name in ("public_test_cases", "private_test_cases")
        if fields.get(name)
        for test in _parse(fields[name], name)
    ]
    metadata = fields.get("metadata") or {}
    function = (_parse(metadata, "metadata") if isinstance(metadata, str) else metadata).get("func_name", "")
    runs = []
    for test in tests[:MAX_TESTS]:
        if not isinstance(test, Mapping) or not {"input", "output"} <= test.keys():
            raise BadReference(f"code: expected a test with input and output, found {test!r:.80}")
        if test.get("testtype") == "functional":
            arguments = ", ".join(line for line in str(test["input"]).splitlines() if line.strip())
            call = f"Solution().{function}" if "class Solution" in code else function
            assertions = f"true, false, null = True, False, None\nassert {call}({arguments}) == {test['output']}"
            runs.append(Run(program="from typing import *\n" + code, assertions=assertions))
        else:
            runs.append(_stdin_run(code, test))
    if not runs:
        raise BadReference("code: expected tests in public_test_cases or private_test_cases, found none")
    return runs


def _parse(value: Any, name: str) -> Any:
    """JSON, or JSON that was pickled as a text, compressed and put in base64; nothing but a text is unpickled."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        pass
    try:
        unpacked = zlib.decompressobj().decompress(base64.b64decode(value, validate=True), MAX_PACKED_BYTES)
        return json.loads(_TextUnpickler(io.BytesIO(unpacked)).load())
    except Exception as error:  # whatever a damaged text makes of these
        raise BadReference(f"code: expected tests as JSON in {name}, found {value!r:.60}") from error


class _TextUnpickler(pickle.Unpickler):
    """Unpickles texts alone: a class or function in the data is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"expected a text, found {module}.{name}")
