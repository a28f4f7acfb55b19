"""Takes rights away from this process for good: for one that handles text which nobody trusts.

Linux on x86-64 and arm64, without privileges: a seccomp filter answers EPERM to the system calls that open files for
writing, change names or attributes of files, make sockets, start or signal or trace processes, or change limits and
namespaces. Everything else passes, so it forbids what is listed and is no sandbox against the kernel. Files that are
open already stay usable, and threads can still be made.
"""

import ctypes
import errno
import os
import platform
import struct
import sys

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CLONE_THREAD = 0x00010000
_FIRST_X32_CALL = 0x40000000
"""x86-64 has a second set of numbers for the same calls."""

# Numbers of the kernel's tables (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h).
_DENIED_EVERYWHERE = {
    *(424, 434, 438),  # pidfd_send_signal, pidfd_open, pidfd_getfd
    *(425, 426, 427),  # io_uring_setup, _enter, _register: system calls by another way
    *(428, 429, 430, 431, 432, 433, 442),  # open_tree, move_mount, fsopen, fsconfig, fsmount, fspick, mount_setattr
    *(437, 452),  # openat2, fchmodat2
}
_DENIED = {
    "x86_64": {
        *(41, 42, 43, 49, 50, 53, 288),  # socket, connect, accept, bind, listen, socketpair, accept4
        *(57, 58, 59, 322),  # fork, vfork, execve, execveat
        *(62, 129, 200, 234, 297),  # kill, rt_sigqueueinfo, tkill, tgkill, rt_tgsigqueueinfo
        *(101, 310, 311),  # ptrace, process_vm_readv, process_vm_writev
        *(76, 77, 85, 285),  # truncate, ftruncate, creat, fallocate
        *(82, 83, 84, 86, 87, 88),  # rename, mkdir, rmdir, link, unlink, symlink
        *(258, 259, 263, 264, 265, 266, 316),  # mkdirat, mknodat, unlinkat, renameat, linkat, symlinkat, renameat2
        *(90, 91, 92, 93, 94, 133, 260, 268),  # chmod, fchmod, chown, fchown, lchown, mknod, fchownat, fchmodat
        *(132, 235, 261, 280),  # utime, utimes, futimesat, utimensat
        *(188, 189, 190, 197, 198, 199),  # setxattr, l-, f-; removexattr, l-, f-
        *(155, 161, 165, 166, 272, 308),  # pivot_root, chroot, mount, umount2, unshare, setns
        *(160, 240, 248, 249, 250),  # setrlimit, mq_open, add_key, request_key, keyctl
        *(298, 319, 321, 323),  # perf_event_open, memfd_create, bpf, userfaultfd
    },
    "aarch64": {
        *(198, 199, 200, 201, 202, 203, 242),  # socket, socketpair, bind, listen, accept, connect, accept4
        *(221, 281),  # execve, execveat
        *(129, 130, 131, 138, 240),  # kill, tkill, tgkill, rt_sigqueueinfo, rt_tgsigqueueinfo
        *(117, 270, 271),  # ptrace, process_vm_readv, process_vm_writev
        *(45, 46, 47),  # truncate, ftruncate, fallocate
        *(33, 34, 35, 36, 37, 38, 276),  # mknodat, mkdirat, unlinkat, symlinkat, linkat, renameat, renameat2
        *(52, 53, 54, 55, 88),  # fchmod, fchmodat, fchownat, fchown, utimensat
        *(5, 6, 7, 14, 15, 16),  # setxattr, l-, f-; removexattr, l-, f-
        *(39, 40, 41, 51, 97, 268),  # umount2, mount, pivot_root, chroot, unshare, setns
        *(164, 180, 217, 218, 219),  # setrlimit, mq_open, add_key, request_key, keyctl
        *(241, 279, 280, 282),  # perf_event_open, memfd_create, bpf, userfaultfd
    },
}
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE3 = 435
_OPENAT = {"x86_64": 257, "aarch64": 56}
_OPEN = {"x86_64": 2}
_PRLIMIT = {"x86_64": 302, "aarch64": 261}

# Classic BPF: load a word, jump on a comparison (targets are relative), return a verdict.
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER_OFFSET, _ARCH_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2

Instruction = tuple[int, int, int, int]
"""Operation, jump if true, jump if false, operand."""


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def confine() -> str:
    """Install the filter; it cannot be taken off again. Returns why it could not be installed, empty when it was.

    For a process of one thread: other threads would stay as they are.
    """
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _DENIED:
        return f"no filter for {sys.platform} on {machine}"
    instructions = make_filter(machine)
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)
    program = _Program(len(instructions), code)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0
    ):
        return f"the kernel refuses the filter: {os.strerror(ctypes.get_errno())}"
    return ""


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
    for number in sorted(_DENIED[machine] | _DENIED_EVERYWHERE):
        program += [(_JUMP_EQUAL, 0, 1, number), deny]
    # The C library falls back to clone, whose flags a filter can read.
    program += [(_JUMP_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    writing = (_JUMP_ANY_BIT, 0, 1, _WRITING)
    program += _judge_argument(_OPENAT[machine], 2, writing)
    if machine in _OPEN:
        program += _judge_argument(_OPEN[machine], 1, writing)
    program += _judge_argument(_CLONE[machine], 0, (_JUMP_ANY_BIT, 1, 0, _CLONE_THREAD))
    # Asking for a limit passes no new one.
    program += _judge_argument(_PRLIMIT[machine], 2, (_JUMP_EQUAL, 1, 0, 0))
    return [*program, allow]


def _judge_argument(number: int, argument: int, jump: Instruction) -> list[Instruction]:
    """For one system call: refuse where `jump` goes to the next instruction, allow where it skips it.

    Judges the lower half of the argument (both machines store it first).
    """
    return [
        (_JUMP_EQUAL, 0, 4, number),
        (_LOAD, 0, 0, _ARGUMENTS_OFFSET + 8 * argument),
        jump,
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
