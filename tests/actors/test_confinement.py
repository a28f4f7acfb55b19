"""What a confined process can still do, tried in a real one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from actors.confinement import make_filter

ATTEMPTS = {
    "read a file": "open(__import__('os').__file__).read(100)",
    "import a module": "__import__('wave')",
    "make a thread": "t = __import__('threading').Thread(target=int); t.start(); t.join()",
    "use an open socket": "left.sendall(b'x'); assert right.recv(1) == b'x'",
    "ask for a limit": "__import__('resource').getrlimit(__import__('resource').RLIMIT_AS)",
    "connect": "socket.create_connection(('127.0.0.1', 9), 1)",
    "make a datagram socket": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "make a local socket": "socket.socketpair()",
    "write a new file": "open(where + '/new', 'w')",
    "write an old file": "open(where + '/old', 'r+')",
    "append to a file": "open(where + '/old', 'a')",
    "truncate": "os.truncate(where + '/old', 0)",
    "remove": "os.unlink(where + '/old')",
    "rename": "os.rename(where + '/old', where + '/older')",
    "make a directory": "os.mkdir(where + '/directory')",
    "link": "os.symlink(where + '/old', where + '/link')",
    "change rights": "os.chmod(where + '/old', 0o777)",
    "run a program": "subprocess.run(['true'])",
    "become a program": "os.execv('/bin/true', ['true'])",
    "fork": "os.fork() or os._exit(0)",
    "signal the parent": "os.kill(os.getppid(), 0)",
    "signal itself": "os.kill(os.getpid(), 9)",
    "raise a limit": "__import__('resource').setrlimit(__import__('resource').RLIMIT_CORE, (0, 0))",
}
ATTEMPTS |= {
    "have a pipe kill another process": "r, w = pipe; fcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())",
    "have a pipe send a signal": "fcntl.fcntl(pipe[0], 10, 9)",
    "have a pipe send signals at all": "fcntl.fcntl(pipe[0], fcntl.F_SETFL, os.O_ASYNC)",
    "take a descriptor by its number": "libc('open_by_handle_at', -1, None, os.O_WRONLY)",
    "account processes to a file": "libc('acct', (where + '/old').encode())",
    "slow the parent down": "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
    "move the parent to a core": "os.sched_setaffinity(os.getppid(), {0})",
    "mount": "libc('mount', b'none', b'/mnt', b'tmpfs', 0, None)",
    "change its user": "os.setuid(12345)",
    "trace the parent": "libc('ptrace', 16, os.getppid(), None, None)",
    "set the clock": "__import__('time').clock_settime(0, 0)",
    "make a memory file": "os.memfd_create('x')",
    "change its root": "os.chroot(where)",
    "use an unknown call": "libc('syscall', 9999)",
}
ALLOWED = ("read a file", "import a module", "make a thread", "use an open socket", "ask for a limit")
SCRIPT = """
import ctypes, fcntl, json, os, socket, subprocess, sys
from actors.confinement import confine
def libc(name, *arguments):
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)
pipe = os.pipe()
where, attempts = sys.argv[1], json.loads(sys.argv[2])
left, right = socket.socketpair()
reason = confine()
results = {}
for name, code in attempts.items():
    try:
        exec(code)
        results[name] = "done"
    except Exception as error:
        results[name] = type(error).__name__
print(json.dumps([reason, results]))
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    where = tmp_path_factory.mktemp("files")
    (where / "old").write_text("as it was")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, where, json.dumps(ATTEMPTS)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
    )
    reason, results = json.loads(done.stdout)
    if reason:
        pytest.skip(f"not confined here: {reason}")
    return where, results


def test_reading_and_what_is_open_still_work(outcome):
    assert {name: outcome[1][name] for name in ALLOWED} == dict.fromkeys(ALLOWED, "done")


def test_network_writing_and_processes_are_refused(outcome):
    refused = {name: result for name, result in outcome[1].items() if name not in ALLOWED}
    # Python turns a refused limit into a ValueError.
    assert refused == dict.fromkeys(refused, "PermissionError") | {"raise a limit": "ValueError"}
    assert len(refused) == len(ATTEMPTS) - len(ALLOWED)
    assert [path.name for path in outcome[0].iterdir()] == ["old"]
    assert (outcome[0] / "old").read_text() == "as it was"


def judged(machine: str, number: int, arguments=(0, 0, 0), arch: int | None = None) -> int:
    """What the filter says to a system call: the instructions, interpreted as the kernel's manual defines them."""
    data = {0: number, 4: arch or {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[machine]}
    for index, value in enumerate(arguments):
        data |= {16 + 8 * index: value & 0xFFFFFFFF, 20 + 8 * index: value >> 32}
    program, place, accumulator = make_filter(machine), 0, 0
    while True:
        operation, if_true, if_false, operand = program[place]
        place += 1
        if operation == 0x06:
            return operand
        if operation == 0x20:
            accumulator = data[operand]
            continue
        holds = {0x15: accumulator == operand, 0x35: accumulator >= operand, 0x45: bool(accumulator & operand)}
        place += if_true if holds[operation] else if_false


ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000


@pytest.mark.parametrize(
    ("machine", "number", "arguments", "verdict"),
    [
        ("x86_64", 0, (), ALLOW),  # read
        ("x86_64", 44, (), ALLOW),  # sendto
        ("x86_64", 41, (), EPERM),  # socket
        ("x86_64", 2, (0, os.O_RDONLY), ALLOW),  # open
        ("x86_64", 2, (0, os.O_WRONLY), EPERM),
        ("x86_64", 257, (0, 0, os.O_RDONLY | os.O_CLOEXEC), ALLOW),  # openat
        ("x86_64", 257, (0, 0, os.O_CREAT), EPERM),
        ("x86_64", 56, (0x3D0F00,), ALLOW),  # clone of a thread
        ("x86_64", 56, (0x1200011,), EPERM),  # fork
        ("x86_64", 435, (), ENOSYS),  # clone3
        ("x86_64", 302, (0, 4, 0), ALLOW),  # getrlimit
        ("x86_64", 302, (0, 4, 1), EPERM),  # setrlimit
        ("x86_64", 302, (0, 4, 1 << 32), EPERM),  # with an address whose lower half is 0
        ("x86_64", 302, (1, 4, 0), EPERM),  # of another process
        ("aarch64", 261, (0, 4, 1 << 32), EPERM),
        ("aarch64", 261, (0, 4, 0), ALLOW),
        ("x86_64", 0x40000000 + 41, (), EPERM),  # socket of x32
        ("aarch64", 63, (), ALLOW),  # read
        ("aarch64", 198, (), EPERM),  # socket
        ("aarch64", 56, (0, 0, os.O_RDWR), EPERM),  # openat
        ("aarch64", 56, (0, 0, os.O_RDONLY), ALLOW),
        ("aarch64", 220, (0x1200011,), EPERM),  # fork
        ("aarch64", 221, (), EPERM),  # execve
    ],
)
def test_the_filter_of_each_machine_judges_calls_by_number_and_argument(machine, number, arguments, verdict):
    assert judged(machine, number, tuple(arguments) + (0,) * (3 - len(arguments))) == verdict


def test_calls_of_another_machine_end_the_process():
    assert judged("x86_64", 0, arch=0x40000003) == KILL


def test_no_jump_leads_out_of_the_filter():
    for machine in ("x86_64", "aarch64"):
        program = make_filter(machine)
        assert len(program) < 4096
        for place, (operation, if_true, if_false, _) in enumerate(program):
            if operation in (0x15, 0x35, 0x45):
                assert place + 1 + max(if_true, if_false) < len(program)
        assert program[-1][0] == 0x06


LANDLOCK_SCRIPT = """
import ctypes, os, sys
from actors.confinement import confine
has_landlock = ctypes.CDLL(None, use_errno=True).syscall(444, None, 0, 1) > 0
confine()
for path in (sys.argv[1], f"/proc/{os.getppid()}/environ"):
    try:
        open(path).read()
    except PermissionError:
        continue
    assert not has_landlock, path
"""


def test_what_lies_outside_pythons_directories_cannot_be_read_where_landlock_is(tmp_path):
    (tmp_path / "secret").write_text("key")
    command = [sys.executable, "-c", LANDLOCK_SCRIPT, str(tmp_path / "secret")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_scoring_processes_are_confined(caplog):
    from actors.scoring_process import Scorer

    scorer = Scorer(5.0)
    try:
        status = Path(f"/proc/{scorer.ensure_ready()}/status").read_text()
    finally:
        scorer.close()
    # 2: a filter
    assert "Seccomp:\t2" in status or "keep the rights" in caplog.text
    for kind in ("Inh", "Prm", "Eff", "Amb"):
        assert f"Cap{kind}:\t{0:016x}" in status or "keep the rights" in caplog.text
