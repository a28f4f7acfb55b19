"""Runs programs that nobody trusts, each in a process of its own that reaches nothing, and says what came of it.

    scoring process (confined) ── request ──► runner ── fork ──► program (confined, limits on time, memory and output)

The runner is started before the scoring process gives its rights away, since that can start nothing afterwards. It keeps the right
to fork and to kill, imports nothing of the program's, and looks at no byte of its output but to count and pass it on. The program
inherits its confinement (`actors.confinement`: no file but Python's own, the working directory neither) and adds the filter of
system calls, so that it opens nothing for writing, has no network, starts, signals and traces no process.

A program is killed when its time is up, when it writes more than it may, and with its runner; a runner ends with the scoring
process. Assertions run in the program's own process: a program that takes over the interpreter can make them pass. A plain exit
counts as an error, since what says that they passed is a secret that the process is told after the program has run.
"""

import contextlib
import ctypes
import json
import os
import resource
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from actors.confinement import confine_reading, install_filter, make_filter_program
from rewards.code_answer import Run

MAX_OUTPUT_BYTES = 2**20
"""Of standard output; a program that writes more is killed."""
MAX_ERROR_CHARS = 300
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one run."""

    wall_s: float = 2.0
    memory_mib: int = 512
    """Address space, Python's own of about 30 MiB included"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a run ended.

    Example: `Ending(status="done", output="7\\n")`, `Ending(status="error", problem="NameError: …")`
    """

    status: str
    """`done`, `failed` (an assertion), `error`, `timeout` or `flood`"""
    output: str = ""
    problem: str = ""


class CodeRunner:
    """The scoring process's end of its runner."""

    def __init__(self) -> None:
        """Returns once the runner is there. `unconfined` says which layers of confinement the kernel lacks.

        Raises RuntimeError when it does not start.
        """
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-W", "ignore", "-m", "actors.code_runner", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._file = self._socket.makefile("rb")
        hello = self._file.readline()
        if not hello:
            raise RuntimeError(f"the runner of programs did not start: exit status {self._process.wait()}")
        self.unconfined: str = json.loads(hello)["unconfined"]

    def run(self, run: Run, limits: Limits) -> Ending:
        """Blocks until the program has ended. Raises RuntimeError when the runner is gone.

        What is expected on standard output stays here: no memory that a program can look through ever holds it.
        """
        told = asdict(replace(run, output=None))
        self._socket.sendall(json.dumps({"run": told, "limits": asdict(limits)}).encode() + b"\n")
        reply = self._file.readline()
        if not reply:
            raise RuntimeError("the runner of programs is gone")
        return Ending(**json.loads(reply))


def serve(connection: socket.socket) -> None:
    """The runner's loop."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # the programs' too
    # What programs may read: Python's own directories, and not those that the scoring process finds its modules in.
    sys.path = [path for path in sys.path if path.startswith((sys.prefix, sys.base_prefix))]
    unconfined = confine_reading()
    filter_program, missing = make_filter_program()
    unconfined = "; ".join(part for part in (unconfined, missing) if part)
    with connection, connection.makefile("rb") as requests:
        connection.sendall(json.dumps({"unconfined": unconfined}).encode() + b"\n")
        for line in requests:
            request = json.loads(line)
            ending = _run(connection, Run(**request["run"]), Limits(**request["limits"]), filter_program)
            connection.sendall(json.dumps(asdict(ending)).encode() + b"\n")


def _run(connection: socket.socket, run: Run, limits: Limits, filter_program: Any) -> Ending:
    secret = secrets.token_bytes(16)
    stdin, theirs_in = socket.socketpair()
    stdout, theirs_out = socket.socketpair()
    verdict, theirs_verdict = socket.socketpair()
    child = os.fork()
    if child == 0:
        try:
            for ours in (connection, stdin, stdout, verdict):
                ours.close()
            _become_program(run, limits, filter_program, theirs_in.fileno(), theirs_out.fileno(), theirs_verdict)
        finally:
            os._exit(3)
    for theirs in (theirs_in, theirs_out, theirs_verdict):
        theirs.close()
    try:
        return _watch(connection, child, run, limits, secret, stdin, stdout, verdict)
    finally:
        for ours in (stdin, stdout, verdict):
            ours.close()


def _watch(
    connection: socket.socket,
    child: int,
    run: Run,
    limits: Limits,
    secret: bytes,
    stdin: socket.socket,
    stdout: socket.socket,
    verdict: socket.socket,
) -> Ending:
    """Feed and read the program until it ends or has to be ended."""
    deadline = time.monotonic() + limits.wall_s
    to_write, output, said = run.stdin.encode(errors="replace"), bytearray(), bytearray()
    has_secret, status = False, ""
    for one in (stdin, stdout, verdict):
        one.setblocking(False)
    poll = select.poll()
    poll.register(stdout, select.POLLIN)
    poll.register(verdict, select.POLLIN)
    poll.register(connection, select.POLLHUP | select.POLLRDHUP)
    if to_write:
        poll.register(stdin, select.POLLOUT)
    else:
        stdin.shutdown(socket.SHUT_WR)
    open_ends = {stdout.fileno(), verdict.fileno()}
    while open_ends and not status:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            status = "timeout"
            break
        for descriptor, _ in poll.poll(1000 * left_s):
            if descriptor == connection.fileno():  # whoever asked is gone
                os.kill(child, signal.SIGKILL)
                os._exit(0)
            if descriptor == stdin.fileno():
                try:
                    to_write = to_write[stdin.send(to_write[: 2**16]) :]
                except BlockingIOError:
                    continue
                except OSError:  # it reads no more
                    to_write = b""
                if not to_write:
                    poll.unregister(stdin)
                    with contextlib.suppress(OSError):
                        stdin.shutdown(socket.SHUT_WR)
                continue
            end, buffer = (stdout, output) if descriptor == stdout.fileno() else (verdict, said)
            try:
                data = end.recv(2**16)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            buffer += data
            if not data:
                poll.unregister(end)
                open_ends.discard(descriptor)
            if len(output) > MAX_OUTPUT_BYTES or len(said) > 2**16:
                status = "flood"
            if end is verdict and said == b"?" and not has_secret:  # the program has run, its assertions come next
                has_secret = True
                with contextlib.suppress(OSError):
                    verdict.send(secret)
    os.kill(child, signal.SIGKILL)
    _, code = os.waitpid(child, 0)
    text = output.decode(errors="replace")
    if status:
        return Ending(status=status)
    if said == b"?" + secret or (not run.assertions and said == b"="):
        return Ending(status="done", output=text)
    problem = said.lstrip(b"?").decode(errors="replace")[:MAX_ERROR_CHARS]
    if problem.startswith("AssertionError"):
        return Ending(status="failed", problem=problem)
    if os.WIFSIGNALED(code) and os.WTERMSIG(code) == signal.SIGXCPU:
        return Ending(status="timeout")
    return Ending(status="error", output=text, problem=problem or "it ended before its end")


def _become_program(
    run: Run, limits: Limits, filter_program: Any, stdin: int, stdout: int, verdict: socket.socket
) -> None:
    """In the forked process: give every right away, run, and tell how it went. Never returns normally."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.dup2(stdin, 0)
    os.dup2(stdout, 1)
    channel = os.dup2(verdict.fileno(), 3)
    os.closerange(4, 1024)
    cpu_s = int(limits.wall_s) + 1
    memory = limits.memory_mib * 2**20
    for what, value in (
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 32),
    ):
        resource.setrlimit(what, (value, value))
    os.environ.clear()
    # Libraries that compute with threads would make as many as there are processors, each with memory of its own.
    os.environ.update({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})
    install_filter(filter_program)
    sys.stdin, sys.stdout = open(0, encoding="utf-8"), open(1, "w", encoding="utf-8")  # noqa: SIM115
    _exec(run, channel, os.read, os.write, os._exit)


def _exec(run: Run, channel: int, read: Any, write: Any, leave: Any) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
    try:
        try:
            exec(compile(run.program, "program.py", "exec"), namespace)
        except SystemExit as stop:
            if run.assertions or stop.code not in (None, 0):
                raise
        sys.stdout.flush()
        if run.assertions:
            write(channel, b"?")
            secret = read(channel, 16)
            exec(compile(run.assertions, "tests.py", "exec"), namespace)
            write(channel, secret)
        else:
            write(channel, b"=")
        leave(0)
    except BaseException as error:  # of a program that nobody trusts
        text = f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARS]
        with contextlib.suppress(OSError):
            write(channel, text.encode(errors="replace"))
        leave(1)


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        serve(connection)


if __name__ == "__main__":
    main()
