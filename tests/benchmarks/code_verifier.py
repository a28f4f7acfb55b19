"""Programs judged per second, against a new Python for every test.

    python -m tests.benchmarks.code_verifier [--seconds 10]

One scoring process judges completions with a program of three tests of standard input and output, one after the other. Beside it the
same tests run as `python -I -c PROGRAM`, without any confinement: what a verifier without a runner of its own costs. The last row has
one endless program among twenty, with a limit of one second.
"""

import argparse
import itertools
import subprocess
import sys
import time
from collections.abc import Sequence

from actors.judges import Judge
from actors.scoring_process import Scorer
from rewards.base import Outcome, Reference

PROGRAM = "a, b = map(int, input().split())\nprint(a + b)"
TESTS = [{"input": f"{n} {n + 1}", "output": str(2 * n + 1)} for n in range(3)]
CODE = Judge(name="code", args={"test_timeout_s": 1.0})
REFERENCE = Reference(answer="", fields={"tests": TESTS})
GROUP = 8


def judged_per_s(scorer: Scorer, programs: Sequence[str], seconds: float) -> float:
    """Completions a second, in groups."""
    texts = itertools.cycle([f"```python\n{program}\n```" for program in programs])
    began, num_judged = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        group = list(itertools.islice(texts, GROUP))
        outcomes = [verdict.outcome for verdict in scorer.verify(group, REFERENCE, CODE)]
        assert set(outcomes) <= {Outcome.CORRECT, Outcome.TIMEOUT}, outcomes
        num_judged += len(group)
    return num_judged / (time.monotonic() - began)


def fresh_per_s(seconds: float) -> float:
    """The same with a new interpreter for every test."""
    began, num_judged = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        for test in TESTS:
            done = subprocess.run(
                [sys.executable, "-I", "-c", PROGRAM], input=test["input"], capture_output=True, text=True, check=True
            )
            assert done.stdout.strip() == test["output"]
        num_judged += 1
    return num_judged / (time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="per row")
    seconds = parser.parse_args().seconds
    scorer = Scorer(10.0, [CODE])
    try:
        healthy = judged_per_s(scorer, [PROGRAM], seconds)
        endless = judged_per_s(scorer, [*[PROGRAM] * 19, "while True:\n    pass"], max(seconds, 20.0))
    finally:
        scorer.close()
    fresh = fresh_per_s(seconds)
    print("| three tests each | completions/s |\n|---|---|")
    print(f"| one scoring process | {healthy:.0f} |")
    print(f"| a new Python for every test, not confined | {fresh:.0f} |")
    print(f"| one scoring process, 1 of 20 endless (1 s) | {endless:.1f} |")
    print(f"\nratio {healthy / fresh:.1f}")


if __name__ == "__main__":
    main()
