"""Verification of answers in a process that can be killed, and the owner of that process.

The verifier runs sympy on text that a policy in training wrote, so now and then it hangs, eats memory or
crashes. The owner (`Scorer`) sends a group's texts at once and reads one verdict per text. When a verdict
does not come by its deadline, or the process is gone, that text gets TIMEOUT or CRASHED and the rest goes on
in a second process, which stands ready, imports done; a new one starts up in its stead meanwhile. So a kill
costs no start-up time.

Between the two goes JSON, one line per message, over a socket pair: texts and the reference answer one way,
verdicts the other. Nothing is unpickled, and the child (`python -m actors.scoring_process`) imports little
more than its verifier.

Covered: hangs in Python and in C, runaway memory, crashes, an owner that is killed (the kernel ends a child
that outlives its deadline; an idle one reads end-of-file). A text that takes over the Python process gets no network,
writes no files, starts or signals no processes and reads Python's own files alone (`actors.confinement`), where the platform
allows that; it finds no tokens or keys in its environment. Its group's texts and reference answer are open to it.
"""

import argparse
import dataclasses
import json
import logging
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from actors.confinement import confine
from actors.judges import JUDGED, LABEL, MATH, SAME_VALUE, Call, Judge, make_call, prepare, where_raised
from configs.errors import UserError
from rewards.base import AnswerVerdict, BadReference, Outcome, Reference

log = logging.getLogger(__name__)

MEMORY_LIMIT_BYTES = 4 * 2**30
"""Address space of the child."""
FILE_LIMIT_BYTES = 2**20
"""Limit on what the child writes to its stderr, the only file it has."""
START_TIMEOUT_S = 120.0
OWNER_GONE_GRACE_S = 5.0
"""A child this long past a deadline has no owner left to kill it."""
STDERR_TAIL_BYTES = 4000
MAX_ERROR_CHARS = 2000
"""Length of the reason why a reference answer is refused."""
MAX_LINE_BYTES = 2**16
"""Size of a message from the child; a longer one counts as a crash."""
MAX_ANSWER_CHARS = 500
"""Length of an answer that a verdict brings back."""
ENVIRONMENT = re.compile(
    r"PATH|LANG|LC_\w+|TZ|PYTHON(?:HASHSEED|UTF8|IOENCODING|DONTWRITEBYTECODE)|(?:OMP|MKL|OPENBLAS)_\w+|LD_LIBRARY_PATH"
)
"""Variables that the child gets; never what may hold a token or a key."""


MAX_PROBLEMS = 20
"""Different exceptions of verifiers that are logged."""


class Scorer:
    """Verdicts on texts, from one process at work and one that stands ready. Not thread-safe.

    `judges` are all that it can call; their modules are importable from `sys.path`, and are imported before the process gives
    its rights away.
    """

    def __init__(self, deadline_s: float, judges: Sequence[Judge] = (MATH, LABEL, SAME_VALUE)):
        """Returns once the process is ready. Raises RuntimeError when it cannot be started, UserError, which names the setting,
        when one of the judges is not there."""
        if deadline_s <= 0:
            raise ValueError(f"deadline_s: expected more than 0, got {deadline_s}")
        self._deadline_s = deadline_s
        self._judges = tuple(judges)
        self._problems: set[str] = set()
        self._at_work = self._start_process()
        self._spare = self._start_process()
        try:
            unconfined = self._at_work.wait_ready()
        except (RuntimeError, UserError):
            self.close()
            raise
        if unconfined:
            log.warning("scoring processes keep the rights of this one: %s", unconfined)

    def ensure_ready(self) -> int:
        """Process id of a process that is ready, a fresh one if the last has died while idle."""
        if not self._at_work.is_alive:
            self._replace()
        return self._at_work.pid

    def verify(self, texts: Sequence[str], reference: Reference, judge: Judge = MATH) -> list[AnswerVerdict]:
        """One verdict per text, in order; TIMEOUT or CRASHED where there was none to be had.

        Each text has `deadline_s` from the verdict before it. Raises BadReference when the verifier refuses the
        reference, RuntimeError when no process can be started.
        """
        return self._judge(texts, dataclasses.asdict(reference), judge)

    def find_equal(self, answers: Sequence[str], other: str, judge: Judge = SAME_VALUE) -> list[bool]:
        """Which answers are one vote with `other`; where a comparison hangs, crashes or raises it is not."""
        return [verdict.outcome == Outcome.CORRECT for verdict in self._judge(answers, other, judge)]

    def _judge(self, texts: Sequence[str], other: Any, judge: Judge) -> list[AnswerVerdict]:
        if judge not in self._judges:
            raise RuntimeError(f"expected one of the judges that the process was started with, got {judge}")
        number = self._judges.index(judge)
        self.ensure_ready()
        verdicts: list[AnswerVerdict] = []
        while len(verdicts) < len(texts):
            request = {"texts": list(texts[len(verdicts) :]), "other": other, "judge": number}
            failure = self._judge_until_failure(request, verdicts)
            if failure is not None:
                verdicts.append(AnswerVerdict(outcome=failure))
                self._replace()
        return verdicts

    def close(self) -> None:
        self._at_work.kill()
        self._spare.kill()

    def _judge_until_failure(self, request: dict[str, Any], verdicts: list[AnswerVerdict]) -> Outcome | None:
        """Appends verdicts until all are there (None) or the next one will not come (why)."""
        try:
            self._at_work.send(request, self._deadline_s)
            for _ in request["texts"]:
                reply = self._at_work.receive(self._deadline_s)
                verdicts.append(_read_verdict(reply))
                self._note_problem(reply)
        except TimeoutError:
            return Outcome.TIMEOUT
        except (EOFError, ConnectionError, _Nonsense):
            return Outcome.CRASHED
        except KeyboardInterrupt:
            self._at_work.kill()  # or the next call would read the verdicts of this one
            raise
        return None

    def _note_problem(self, reply: dict[str, Any]) -> None:
        """Log what a verifier raised, each once."""
        problem = str(reply.get("problem", ""))[:MAX_ERROR_CHARS]
        if problem and problem not in self._problems and len(self._problems) < MAX_PROBLEMS:
            self._problems.add(problem)
            log.warning("a verifier raised an exception, which counts as outcome `error`: %s", problem)

    def _replace(self) -> None:
        self._at_work.kill()
        self._at_work, self._spare = self._spare, self._start_process()
        self._at_work.wait_ready()

    def _start_process(self) -> "_Process":
        return _Process(self._judges, self._deadline_s)


class _Process:
    """One child and the owner's end of its socket."""

    def __init__(self, judges: Sequence[Judge], deadline_s: float):
        """Returns at once; `wait_ready` waits for the child's imports."""
        self._socket, child_socket = socket.socketpair()
        self._received = bytearray()
        self._unconfined: str | None = None
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed by kill)
        command = [sys.executable, "-P", "-W", "ignore", "-m", "actors.scoring_process"]
        command += ["--socket-fd", str(child_socket.fileno()), "--deadline-s", str(deadline_s)]
        command += ["--judges", json.dumps([dataclasses.asdict(judge) for judge in judges])]
        with child_socket:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._stderr,
                stderr=self._stderr,
                pass_fds=(child_socket.fileno(),),
                # The child imports what this process would, which Ray's runtime environment may have extended.
                env=clean_environment() | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
                # Ctrl-C in a terminal is for the owner, who then closes the child.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def wait_ready(self) -> str:
        """Why the child could not be confined; empty when it is.

        Raises RuntimeError with the child's last words when it does not get ready, UserError with its reason when a judge
        cannot be loaded.
        """
        if self._unconfined is not None:
            return self._unconfined
        try:
            hello = self.receive(START_TIMEOUT_S)
            if "refused" in hello:
                raise UserError(hello["refused"])
            self._unconfined = hello["unconfined"]
        except (EOFError, ConnectionError, TimeoutError, _Nonsense) as error:
            self._process.kill()
            status = self._process.wait()
            reason = f"not ready after {START_TIMEOUT_S:.0f} s" if isinstance(error, TimeoutError) else "it ended"
            raise RuntimeError(
                f"scoring process did not start: {reason}, exit status {status}; "
                f"its stderr ends with:\n{self._stderr_tail()}"
            ) from error
        return self._unconfined

    def send(self, message: dict[str, Any], timeout_s: float) -> None:
        """Raises TimeoutError, or ConnectionError when the child is gone."""
        self._socket.settimeout(timeout_s)
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """The next message. Raises TimeoutError, EOFError or ConnectionError when the child is gone, _Nonsense when it
        is no message."""
        deadline = time.monotonic() + timeout_s
        while (end := self._received.find(b"\n")) < 0:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                raise TimeoutError
            self._socket.settimeout(remaining_s)
            data = self._socket.recv(65536)
            if not data:
                raise EOFError
            self._received += data
            if len(self._received) > MAX_LINE_BYTES and b"\n" not in self._received[:MAX_LINE_BYTES]:
                raise _Nonsense(f"expected a line of at most {MAX_LINE_BYTES} bytes, got more")
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _Nonsense(f"expected JSON, got {line[:100]!r}") from error
        if not isinstance(message, dict):
            raise _Nonsense(f"expected an object, got {line[:100]!r}")
        return message

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._socket.close()
        self._stderr.close()

    def _stderr_tail(self) -> str:
        size_bytes = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size_bytes - STDERR_TAIL_BYTES))
        return self._stderr.read().decode(errors="replace").strip() or "(nothing)"


def clean_environment() -> dict[str, str]:
    """What of this process's environment the child needs."""
    return {name: value for name, value in os.environ.items() if ENVIRONMENT.fullmatch(name)}


class _Nonsense(Exception):
    """The child sent what it does not send unless a text has taken it over."""


def _read_verdict(reply: dict[str, Any]) -> AnswerVerdict:
    """Raises BadReference for a reference that the child refuses, _Nonsense for what is no verdict."""
    name, answer = reply.get("outcome"), reply.get("answer")
    outcome = JUDGED.get(name) if isinstance(name, str) else None
    if outcome is not None and isinstance(answer, str) and len(answer) <= MAX_ANSWER_CHARS:
        return AnswerVerdict(outcome=outcome, answer=answer)
    if isinstance(reply.get("error"), str):
        raise BadReference(reply["error"])
    raise _Nonsense(f"expected a verdict, got keys {sorted(reply)[:5]}")


def serve(connection: socket.socket, calls: Sequence[Call], deadline_s: float, unconfined: str) -> None:
    """The child's loop: say that it is ready, and why it is not confined, then answer until the owner closes its end."""
    with connection, connection.makefile("rb") as requests:
        _send_line(connection, {"unconfined": unconfined})
        for line in requests:
            request = json.loads(line)
            for text in request["texts"]:
                # SIGALRM, left at its default action, ends the process even inside C code.
                signal.setitimer(signal.ITIMER_REAL, deadline_s + OWNER_GONE_GRACE_S)
                try:
                    verdict = calls[request["judge"]](text, request["other"])
                except BadReference as error:
                    _send_line(connection, {"error": str(error)[:MAX_ERROR_CHARS]})
                    break  # the rest has the same reference
                except Exception as error:  # of a verifier that somebody wrote
                    problem = where_raised(error)[:MAX_ERROR_CHARS]
                    _send_line(connection, {"outcome": Outcome.ERROR, "answer": "", "problem": problem})
                    continue
                _send_line(connection, {"outcome": verdict.outcome, "answer": verdict.answer[:MAX_ANSWER_CHARS]})
            signal.setitimer(signal.ITIMER_REAL, 0)


def _send_line(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Child of actors.scoring_process.Scorer; not for the command line.")
    parser.add_argument("--socket-fd", type=int, required=True)
    parser.add_argument("--judges", required=True)
    parser.add_argument("--deadline-s", type=float, required=True)
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)  # math-verify logs what it cannot parse
    connection = socket.socket(fileno=arguments.socket_fd)
    try:
        judges = [Judge(**judge) for judge in json.loads(arguments.judges)]
        calls = [make_call(judge) for judge in judges]
        missing = prepare(judges)
    except UserError as error:
        _send_line(connection, {"refused": str(error)[:MAX_ERROR_CHARS]})
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT_BYTES, FILE_LIMIT_BYTES))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # both are inherited from whoever started the owner
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    with open(os.devnull, "w") as nowhere:  # a verifier that prints must not run into the limit on what it writes
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
        os.dup2(nowhere.fileno(), sys.stderr.fileno())
    unconfined = "; ".join(part for part in (confine(), missing) if part)
    try:
        serve(connection, calls, arguments.deadline_s, unconfined)
    except (BrokenPipeError, ConnectionResetError):
        return  # the owner is gone


if __name__ == "__main__":
    main()
