"""Takes rights away from this process for good: for one that handles text which nobody trusts.

Linux on x86-64 and arm64, without privileges. Three layers, each as far as the kernel has it:

- Capabilities are dropped, so that root is an ordinary user who owns root's files.
- Landlock leaves reading below Python's own directories and those of `sys.path`; no other file can be opened.
- A seccomp filter allows what Python needs to compute, to read files and to talk over what is open already, and answers EPERM to
  every other system call: no file is opened for writing, no socket made, no process started, signalled or traced, no limit, owner
  of a descriptor, priority or affinity changed.

Not covered: files that are open already stay usable, threads can still be made, and processor time and memory are for the owner
and for limits. Without Landlock (before Linux 5.13, or switched off) all files that the user may read can be read, those in
`/proc` too.
"""

import ctypes
import errno
import os
import platform
import struct
import sys
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CLONE_THREAD = 0x00010000
_FIRST_X32_CALL = 0x40000000
"""x86-64 has a second set of numbers for the same calls."""

# Numbers of the kernel's tables (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h).
# fmt: off
_ALLOWED = {
    "x86_64": {
        *(0, 1, 3, 8, 17, 19, 20, 32, 292),  # read, write, close, lseek, pread64, readv, writev, dup, dup3
        *(4, 5, 6, 21, 78, 79, 89, 217, 221),  # stat, fstat, lstat, access, getdents, getcwd, readlink, getdents64, fadvise64
        *(262, 267, 269, 332, 439),  # newfstatat, readlinkat, faccessat, statx, faccessat2
        *(9, 10, 11, 12, 25, 28),  # mmap, mprotect, munmap, brk, mremap, madvise
        *(13, 14, 15, 131, 36, 38),  # rt_sigaction, rt_sigprocmask, rt_sigreturn, sigaltstack, getitimer, setitimer
        *(7, 23, 270, 271),  # poll, select, pselect6, ppoll
        *(44, 45, 48, 51, 54, 55),  # sendto, recvfrom, shutdown, getsockname, setsockopt, getsockopt: of what is open
        *(24, 35, 96, 100, 201, 228, 229, 230),  # sched_yield, nanosleep, gettimeofday, times, time, clock_gettime, _getres, _nanosleep
        *(202, 218, 273, 324, 334),  # futex, set_tid_address, set_robust_list, membarrier, rseq
        *(39, 63, 97, 98, 99, 186, 204, 309),  # getpid, uname, getrlimit, getrusage, sysinfo, gettid, sched_getaffinity, getcpu
        *(102, 104, 107, 108, 110, 111),  # getuid, getgid, geteuid, getegid, getppid, getpgrp
        *(60, 231, 318),  # exit, exit_group, getrandom
    },
    "aarch64": {
        *(57, 62, 63, 64, 65, 66, 67, 23, 24),  # close, lseek, read, write, readv, writev, pread64, dup, dup3
        *(17, 48, 61, 78, 79, 80, 223, 291, 439),  # getcwd, faccessat, getdents64, readlinkat, newfstatat, fstat, fadvise64, statx, faccessat2
        *(214, 215, 216, 222, 226, 233),  # brk, munmap, mremap, mmap, mprotect, madvise
        *(132, 134, 135, 139, 102, 103),  # sigaltstack, rt_sigaction, rt_sigprocmask, rt_sigreturn, getitimer, setitimer
        *(72, 73),  # pselect6, ppoll
        *(204, 206, 207, 208, 209, 210),  # getsockname, sendto, recvfrom, setsockopt, getsockopt, shutdown: of what is open
        *(101, 113, 114, 115, 124, 153, 169),  # nanosleep, clock_gettime, _getres, _nanosleep, sched_yield, times, gettimeofday
        *(96, 98, 99, 283, 293),  # set_tid_address, futex, set_robust_list, membarrier, rseq
        *(123, 160, 163, 165, 168, 172, 178, 179),  # sched_getaffinity, uname, getrlimit, getrusage, getcpu, getpid, gettid, sysinfo
        *(173, 174, 175, 176, 177),  # getppid, getuid, geteuid, getgid, getegid
        *(93, 94, 278),  # exit, exit_group, getrandom
    },
}
# fmt: on
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE3 = 435
_OPENAT = {"x86_64": 257, "aarch64": 56}
_OPEN = {"x86_64": 2}
_PRLIMIT = {"x86_64": 302, "aarch64": 261}
_FCNTL, _IOCTL = {"x86_64": 72, "aarch64": 25}, {"x86_64": 16, "aarch64": 29}
_FCNTL_COMMANDS = (0, 1, 2, 3, 1030)
"""F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC; never an owner or a signal of a descriptor."""
_IOCTL_REQUESTS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX"""

# Classic BPF: load a word, jump on a comparison (targets are relative), return a verdict.
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER_OFFSET, _ARCH_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_PR_CAPBSET_DROP, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, _CAPABILITY_VERSION_3 = 24, 47, 4, 0x20080522
_LANDLOCK_CREATE, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT, _LANDLOCK_PATH_BENEATH = 444, 445, 446, 1
_LANDLOCK_ALL = 0x1FFF
"""Every right of the first version: execute, write, read, and all changes of a directory."""
_LANDLOCK_READ_FILE, _LANDLOCK_READ = 0x4, 0x4 | 0x8
_SYSTEM_DIRECTORIES = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/share/zoneinfo",
    "/etc/ld.so.cache",
)
"""Libraries that Python's modules are linked to."""

Instruction = tuple[int, int, int, int]
"""Operation, jump if true, jump if false, operand."""


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def confine() -> str:
    """Install all layers; they cannot be taken off again. Returns what could not be installed, empty when all was.

    For a process of one thread: other threads would stay as they are. Landlock, which is the youngest, is not missed here.
    """
    program, missing = make_filter_program()
    if program is None:
        return missing
    missing = _give_up_rights()
    _restrict_reading(ctypes.CDLL(None, use_errno=True))
    return "; ".join(filter(None, [missing, install_filter(program)]))


def confine_reading() -> str:
    """All layers but the filter, for a process that starts others which install it: capabilities and Landlock. Returns what could
    not be installed."""
    if sys.platform != "linux":
        return f"no confinement for {sys.platform}"
    missing = _give_up_rights()
    is_restricted = _restrict_reading(ctypes.CDLL(None, use_errno=True))
    return "; ".join(
        filter(None, [missing, "" if is_restricted else "no Landlock: programs can read the user's files"])
    )


def make_filter_program() -> tuple[Any, str]:
    """The filter as `install_filter` takes it, made once for many processes; None and why on a platform without one."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _ALLOWED:
        return None, f"no filter for {sys.platform} on {machine}"
    instructions = make_filter(machine)
    return _Program(len(instructions), b"".join(struct.pack("HBBI", *step) for step in instructions)), ""


def install_filter(program: Any) -> str:
    """Returns why the kernel refuses it, empty when it does not. The process must have given up new privileges."""
    libc = ctypes.CDLL(None, use_errno=True)
    if program is not None and libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0):
        return f"the kernel refuses the filter: {os.strerror(ctypes.get_errno())}"
    return ""


def _give_up_rights() -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    missing = _drop_capabilities(libc)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        missing += f"; the kernel refuses no_new_privs: {os.strerror(ctypes.get_errno())}"
    return missing.removeprefix("; ")


def _drop_capabilities(libc: ctypes.CDLL) -> str:
    """All of them, from every set. Returns why that failed, empty when it did not."""
    for capability in range(64):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # only root can, and only root has any
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    if libc.capset(header, nothing):
        return f"capabilities cannot be dropped: {os.strerror(ctypes.get_errno())}"
    return ""


def _restrict_reading(libc: ctypes.CDLL) -> bool:
    """Landlock: files can be read below Python's directories and those of `sys.path` alone. False where the kernel lacks it."""
    attributes = ctypes.c_uint64(_LANDLOCK_ALL)
    ruleset = libc.syscall(_LANDLOCK_CREATE, ctypes.byref(attributes), ctypes.sizeof(attributes), 0)
    if ruleset < 0:
        return False
    directories = {sys.prefix, sys.base_prefix, *_SYSTEM_DIRECTORIES, *(path or os.getcwd() for path in sys.path)}
    for directory in sorted(directories):
        try:
            descriptor = os.open(directory, os.O_PATH | os.O_CLOEXEC)
        except OSError:  # an entry of sys.path that is not there
            continue
        allowed = _LANDLOCK_READ if os.path.isdir(directory) else _LANDLOCK_READ_FILE
        rule = struct.pack("=Qi", allowed, descriptor)
        libc.syscall(_LANDLOCK_ADD_RULE, ruleset, _LANDLOCK_PATH_BENEATH, rule, 0)
        os.close(descriptor)
    refused = libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0)
    os.close(ruleset)
    return not refused


def make_filter(machine: str) -> list[Instruction]:
    """The filter for `x86_64` or `aarch64`."""
    deny = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    allow = (_RETURN, 0, 0, _ALLOW)
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH_OFFSET),
        (_JUMP_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_OFFSET),
        (_JUMP_AT_LEAST, 0, 1, _FIRST_X32_CALL),
        deny,
    ]
    for number in sorted(_ALLOWED[machine]):
        program += [(_JUMP_EQUAL, 0, 1, number), allow]
    # The C library falls back to clone, whose flags a filter can read.
    program += [(_JUMP_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    writing = [(_JUMP_ANY_BIT, 0, 1, _WRITING)]
    program += _judge_argument(_OPENAT[machine], 2, writing)
    if machine in _OPEN:
        program += _judge_argument(_OPEN[machine], 1, writing)
    program += _judge_argument(_CLONE[machine], 0, [(_JUMP_ANY_BIT, 1, 0, _CLONE_THREAD)])
    # Asking for a limit: of process 0, which is this one, and with no new limit, which is an address of two words.
    words = [_ARGUMENTS_OFFSET, _ARGUMENTS_OFFSET + 16, _ARGUMENTS_OFFSET + 20]
    zeros = [step for word in words for step in ((_LOAD, 0, 0, word), (_JUMP_EQUAL, 1, 0, 0), deny)]
    program += [(_JUMP_EQUAL, 0, len(zeros) + 1, _PRLIMIT[machine]), *zeros, allow]
    program += _judge_argument(_FCNTL[machine], 1, _one_of(_FCNTL_COMMANDS))
    program += _judge_argument(_IOCTL[machine], 1, _one_of(_IOCTL_REQUESTS))
    return [*program, deny]


def _one_of(values: tuple[int, ...]) -> list[Instruction]:
    """Jumps that skip the instruction behind them for any of the values."""
    return [(_JUMP_EQUAL, len(values) - place, 0, value) for place, value in enumerate(values)]


def _judge_argument(number: int, argument: int, jumps: list[Instruction]) -> list[Instruction]:
    """For one system call: refuse where `jumps` go to the next instruction, allow where they skip it.

    Judges the lower half of the argument (both machines store it first).
    """
    return [
        (_JUMP_EQUAL, 0, 3 + len(jumps), number),
        (_LOAD, 0, 0, _ARGUMENTS_OFFSET + 8 * argument),
        *jumps,
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
