"""Programs that nobody trusts: what they may, what they may not, and that none of them is felt by the next."""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from actors.code_runner import CodeRunner, Ending, Limits
from actors.judges import Judge
from actors.scoring_process import Scorer
from rewards.base import Outcome, Reference
from rewards.code_answer import Run
from tests.actors.hostile_programs import hostile_programs

CODE = Judge(name="code", args={"test_timeout_s": 1.0, "total_timeout_s": 3.0, "memory_mib": 256})
SUM = Reference(answer="", fields={"tests": [{"input": "3 4", "output": "7"}]})
HEALTHY = "a, b = map(int, input().split())\nprint(a + b)"
GRACE_S = 20.0
"""For a machine that is busy with other things; what is tested is that nothing hangs."""


@pytest.fixture(scope="module")
def runner():
    return CodeRunner()


@pytest.fixture
def scorer():
    scorer = Scorer(30.0, [CODE])
    yield scorer
    scorer.close()


def block(code: str) -> str:
    return f"```python\n{code}\n```"


def test_a_program_reads_its_input_and_its_output_comes_back(runner):
    assert runner.run(Run(program="print(input()[::-1])", stdin="abc"), Limits(wall_s=9)).output == "cba\n"
    large = runner.run(Run(program="import sys\nprint(len(sys.stdin.read()))", stdin="x" * 500_000), Limits(wall_s=9))
    assert large == Ending(status="done", output="500000\n")


@pytest.mark.parametrize(
    ("program", "assertions", "status", "problem"),
    [
        ("def f(): return 1", "assert f() == 1", "done", ""),
        ("def f(): return 1", "assert f() == 2", "failed", "AssertionError"),
        ("def f(): return 1", "assert g() == 2", "error", "NameError"),
        ("import os\nos._exit(0)", "assert True", "error", "it ended before its end"),
        ("raise SystemExit(0)", "assert True", "error", "SystemExit"),
        ("x = (", "assert True", "error", "SyntaxError"),
        ("import math, json, collections, itertools, re", "assert math.pi > 3", "done", ""),
        ("while True: pass", "assert True", "timeout", ""),
    ],
)
def test_assertions_decide(runner, program, assertions, status, problem):
    ending = runner.run(Run(program=program, assertions=assertions), Limits(wall_s=1 if status == "timeout" else 9))
    assert ending.status == status
    assert problem in ending.problem


def test_no_variable_of_this_process_reaches_a_program(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "abcdefgh")
    ending = CodeRunner().run(Run(program="import os\nprint(sorted(os.environ))"), Limits(wall_s=9))
    assert "MY_API_KEY" not in ending.output


def test_a_program_that_looks_through_its_memory_does_not_find_what_is_expected(runner):
    spy = (
        "import gc, sys\nfound = []\nframe = sys._getframe()\nwhile frame:\n"
        "    found.append(repr(frame.f_locals))\n    frame = frame.f_back\n"
        "found += [repr(o) for o in gc.get_objects() if isinstance(o, (dict, tuple, list)) and len(o) < 50]\n"
        "print(any(str(int('31414') + 1) in text for text in found), len(found))"
    )
    ending = runner.run(Run(program=spy, output="31415"), Limits(wall_s=9))
    assert ending.output.split()[0] == "False", ending


def test_the_runner_ends_with_whoever_started_it():
    script = (
        "from actors.code_runner import CodeRunner\nimport os, time\nrunner = CodeRunner()\n"
        "print(runner._process.pid, flush=True)\ntime.sleep(60)\n"
    )
    path = os.pathsep.join(path or os.getcwd() for path in sys.path)
    with subprocess.Popen(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        owner.kill()
    deadline = time.monotonic() + GRACE_S
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_outcomes_of_the_verifier(scorer):
    texts = [block(HEALTHY), block("print(8)"), block("1 / 0"), block("while True: pass"), "The sum is 7."]
    found = [verdict.outcome for verdict in scorer.verify(texts, SUM, CODE)]
    assert found == [Outcome.CORRECT, Outcome.WRONG, Outcome.ERROR, Outcome.TIMEOUT, Outcome.UNPARSABLE]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(platform.machine() != "x86_64", reason="system calls by their numbers")
def test_two_hundred_hostile_programs_reach_nothing_and_are_not_felt_by_the_next(scorer, tmp_path):
    secret, place = tmp_path / "secret.txt", tmp_path / "place"
    secret.write_text("do not read")
    place.mkdir()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"]) as bystander:
        programs = hostile_programs(str(secret), str(place), bystander.pid)
        assert len(programs) >= 200
        slowest_s = 0.0
        for program in programs:
            began = time.monotonic()
            bad, good = scorer.verify([block(program), block(HEALTHY)], SUM, CODE)
            slowest_s = max(slowest_s, time.monotonic() - began)
            assert bad.outcome in (Outcome.WRONG, Outcome.ERROR, Outcome.TIMEOUT, Outcome.UNPARSABLE), program
            assert good.outcome == Outcome.CORRECT, program
        assert bystander.poll() is None
        bystander.kill()
    assert secret.read_text() == "do not read"
    assert {path.name for path in tmp_path.rglob("*")} == {"secret.txt", "place"}
    assert not list(Path("/tmp").glob("terse_hostile*"))
    assert not list(Path("/dev/shm").glob("terse_hostile*"))
    assert slowest_s < 3.0 + GRACE_S
