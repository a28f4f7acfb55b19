"""The verifier `code`: the last block of Python in a completion, against the tests of its task."""

import time

from actors.code_runner import CodeRunner, Limits
from configs.checks.reward import CODE_TOTAL_TIMEOUT_S
from rewards.base import AnswerVerdict, Outcome, Reference
from rewards.code_answer import extract_code, make_runs, same_output

_OUTCOMES = {"failed": Outcome.WRONG, "timeout": Outcome.TIMEOUT, "flood": Outcome.ERROR, "error": Outcome.ERROR}
_runner: CodeRunner | None = None


def prepare() -> str:
    """Start the runner, while this process still may. Returns which layers of confinement the kernel lacks."""
    global _runner
    _runner = CodeRunner()
    return _runner.unconfined


def verify_code(
    text: str,
    reference: Reference,
    *,
    test_timeout_s: float = 2.0,
    total_timeout_s: float = CODE_TOTAL_TIMEOUT_S,
    memory_mib: int = 512,
) -> AnswerVerdict:
    """Whether the program passes every test: CORRECT, WRONG (an assertion or an output), ERROR (an exception, a plain exit, too much
    memory or output), TIMEOUT, or UNPARSABLE without a program.

    Tests run one after the other until one is not passed, each for at most `test_timeout_s`, all together for `total_timeout_s`,
    which should be less than `reward.deadline_s`. Raises BadReference when the task has no tests.
    """
    code = extract_code(text)
    runs = make_runs(code, reference.fields)
    if not code:
        return AnswerVerdict(outcome=Outcome.UNPARSABLE)
    if _runner is None:
        raise RuntimeError("the verifier `code` runs in a scoring process alone: call prepare() first")
    deadline = time.monotonic() + total_timeout_s
    for run in runs:
        left_s = min(test_timeout_s, deadline - time.monotonic())
        if left_s <= 0:
            return AnswerVerdict(outcome=Outcome.TIMEOUT, answer=code)
        ending = _runner.run(run, Limits(wall_s=left_s, memory_mib=memory_mib))
        outcome = _OUTCOMES.get(ending.status)
        if outcome is None and run.output is not None and not same_output(ending.output, run.output):
            outcome = Outcome.WRONG
        if outcome is not None:
            return AnswerVerdict(outcome=outcome, answer=code)
    return AnswerVerdict(outcome=Outcome.CORRECT, answer=code)
