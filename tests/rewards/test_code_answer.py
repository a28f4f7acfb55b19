"""Programs found in completions, and the tests of a task in the forms that public datasets have them in."""

import base64
import json
import pickle
import zlib

import pytest

from rewards.base import BadReference
from rewards.code_answer import Run, extract_code, make_runs, same_output

CODE = "def f(x):\n    return x\n"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("<think>```python\nno\n```</think>\nSo:\n```python\nyes\n```\nDone.", "yes\n"),
        ("```python\nfirst\n```\nbetter:\n```py\nsecond\n```", "second\n"),
        ("```\nplain\n```", "plain\n"),
        ("```bash\nls\n```", ""),
        ("```python\nprint(1)\n```\n```text\n1\n```", "print(1)\n"),
        ("```python\ncut in the mid", ""),
        ("no block", ""),
        ("```python\n\n```", ""),
        ("  ```python\n  x = 1\n  ```", "  x = 1\n"),
    ],
)
def test_the_last_block_behind_the_thought_counts(text, code):
    assert extract_code(text) == code


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        ("1\n2\n", "1\n2", True),
        ("1 \n2", "1\n2\n\n", True),
        ("1 2", "1\n2", False),
        ("1.50", "1.5", True),
        ("0.30000000000000004", "0.3", True),
        ("1e3", "1000", True),
        ("Yes", "yes", False),
        ("1", "1 2", False),
        ("", "", True),
    ],
)
def test_outputs_are_compared_line_by_line(found, expected, same):
    assert same_output(found, expected) is same


def test_our_own_form_is_pairs_or_assertions():
    assert make_runs(CODE, {"tests": [{"input": 3, "output": "3"}]}) == [Run(program=CODE, stdin="3", output="3")]
    (run,) = make_runs(CODE, {"tests": ["assert f(1) == 1", "assert f(2) == 2"]})
    assert run.assertions == "\nassert f(1) == 1\nassert f(2) == 2"
    assert make_runs(CODE, {"tests": json.dumps(["assert f(1) == 1"])})[0].output is None


def test_human_eval_goes_on_where_the_prompt_ends_or_brings_its_imports():
    fields = {
        "prompt": "from typing import List\n\ndef f(x):\n    '''same'''\n",
        "test": "def check(c): …",
        "entry_point": "f",
    }
    (whole,) = make_runs(CODE, fields)
    assert whole.program == f"from typing import List\n{CODE}"
    assert whole.assertions.endswith("\ncheck(f)\n")
    (body,) = make_runs("    return x\n", fields)
    assert body.program == fields["prompt"] + "\n    return x\n"
    with pytest.raises(BadReference, match="entry_point, found 'f; import os'"):
        make_runs(CODE, {**fields, "entry_point": "f; import os"})


def test_mbpp_has_assertions_and_what_stands_before_them():
    (run,) = make_runs(CODE, {"test_list": ["assert f(1) == 1"], "test_imports": ["import math"]})
    assert run.assertions == "import math\nassert f(1) == 1"
    (plus,) = make_runs(CODE, {"test": "assert f(1) == 1"})
    assert plus.assertions == "\nassert f(1) == 1"


def test_live_code_bench_is_unpacked_without_trusting_it():
    public = json.dumps([{"input": "1\n", "output": "1\n", "testtype": "stdin"}])
    packed = base64.b64encode(
        zlib.compress(pickle.dumps(json.dumps([{"input": "[1]\n2", "output": "true", "testtype": "functional"}])))
    ).decode()
    code = "class Solution:\n    def solve(self, a, b): return True\n"
    fields = {"public_test_cases": public, "private_test_cases": packed, "metadata": '{"func_name": "solve"}'}
    first, second = make_runs(code, fields)
    assert (first.stdin, first.output) == ("1\n", "1\n")
    assert second.assertions.endswith("assert Solution().solve([1], 2) == true")
    assert make_runs("def solve(a, b): …", fields)[1].assertions.endswith("assert solve([1], 2) == true")
    hostile = base64.b64encode(zlib.compress(pickle.dumps(print))).decode()
    with pytest.raises(BadReference, match="expected tests as JSON in private_test_cases"):
        make_runs(code, {**fields, "private_test_cases": hostile})


@pytest.mark.parametrize(
    "fields", [{}, {"tests": []}, {"tests": [3]}, {"tests": [{"input": 1}]}, {"test_list": [3]}, {"tests": "{"}]
)
def test_a_task_without_tests_is_refused(fields):
    with pytest.raises(BadReference, match=r"^code: expected "):
        make_runs(CODE, fields)
