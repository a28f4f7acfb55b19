"""Two hundred programs that want out, or more than their share. `{secret}` is a file that nobody may read or change, `{place}` a
directory that nobody may write to, `{pid}` a process that nobody may touch."""

WRITES = (
    "open({path!r}, 'w').write('x')",
    "open({path!r}, 'a').write('x')",
    "open({path!r}, 'r+').write('x')",
    "import os\nos.open({path!r}, os.O_CREAT | os.O_WRONLY)",
    "import pathlib\npathlib.Path({path!r}).write_text('x')",
    "import os\nos.unlink({path!r})",
    "import os\nos.rename({path!r}, {path!r} + '2')",
    "import os\nos.symlink('/etc/passwd', {path!r} + '.link')",
    "import os\nos.link({path!r}, {path!r} + '.hard')",
    "import os\nos.mkdir({path!r} + '.dir')",
    "import os\nos.chmod({path!r}, 0o777)",
    "import os\nos.truncate({path!r}, 0)",
    "import os\nos.utime({path!r})",
    "import os\nos.mkfifo({path!r} + '.fifo')",
    "import shutil\nshutil.rmtree({path!r})",
    "import sqlite3\nsqlite3.connect({path!r}).execute('create table t (a)')",
    "import ctypes\nl = ctypes.CDLL(None)\nf = l.open({path!r}.encode(), 0o101, 0o666)\nassert f >= 0\nl.write(f, b'x', 1)",
)
WRITE_PLACES = ("{secret}", "{place}/new", "/tmp/terse_hostile", "/dev/shm/terse_hostile")
READS = (
    "print(open({path!r}).read())",
    "import os\nprint(os.read(os.open({path!r}, os.O_RDONLY), 1000))",
    "import mmap\nf = open({path!r}, 'rb')\nprint(mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)[:10])",
    "import ctypes\nl = ctypes.CDLL(None)\nf = l.open({path!r}.encode(), 0)\nassert f >= 0",
)
READ_PLACES = (
    *("{secret}", "/etc/passwd", "/etc/hostname", "/proc/self/environ", "/proc/{pid}/environ", "/proc/{pid}/cmdline"),
    *("/proc/{pid}/mem", "/proc/{pid}/maps", "/proc/1/environ", "/dev/zero", "/proc/self/mem", "/proc/version"),
)
LISTS = ("import os\nprint(os.listdir({path!r}))", "import os\nprint(list(os.scandir({path!r})))")
LIST_PLACES = ("{place}", "/", "/proc", "/proc/{pid}/fd", "/root", "/home", "/tmp")
PROCESSES = (
    "import os\nwhile True:\n    os.fork()",
    "import os\nif os.fork() == 0:\n    while True:\n        pass",
    "import subprocess\nsubprocess.run(['/bin/sh', '-c', 'echo hi'], check=True)",
    "import os\nassert os.system('echo hi') == 0",
    "import os\nassert os.popen('echo hi').read()",
    "import os\nos.posix_spawn('/bin/sh', ['sh', '-c', 'true'], {{}})",
    "import os\nos.execv('/bin/sh', ['sh', '-c', 'echo hi'])",
    "import multiprocessing\np = multiprocessing.Process(target=print)\np.start()\np.join()",
    "import pty\npty.spawn('/bin/sh')",
    "import os\nos.forkpty()",
    "import concurrent.futures as c\nwith c.ProcessPoolExecutor(2) as p:\n    print(list(p.map(abs, [1, 2])))",
    "import ctypes\nl = ctypes.CDLL(None)\nassert l.vfork() >= 0",
    "import ctypes\nl = ctypes.CDLL(None)\nassert l.syscall(435, 0, 0) >= 0",
)
SIGNALS = (
    "import os\nos.kill({pid}, 9)",
    "import os\nos.kill(os.getppid(), 9)",
    "import os\nos.kill(-1, 9)",
    "import os\nos.kill(0, 9)",
    "import os\nos.killpg(os.getpgrp(), 15)",
    "import os, signal\nos.kill({pid}, signal.SIGSTOP)",
    "import os, signal\nsignal.pidfd_send_signal(os.pidfd_open({pid}), 9)",
    "import os\nos.setpriority(os.PRIO_PROCESS, {pid}, 19)",
    "import os\nos.sched_setaffinity({pid}, {{0}})",
    "import resource\nresource.prlimit({pid}, resource.RLIMIT_NOFILE, (0, 0))",
    "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (-1, -1))",
    "import signal, time\nsignal.setitimer(signal.ITIMER_REAL, 0.01)\ntime.sleep(1)",
)
NETWORK = (
    "import socket\nsocket.socket()",
    "import socket\nsocket.socket(socket.AF_UNIX)",
    "import socket\nsocket.socket(socket.AF_INET6, socket.SOCK_DGRAM)",
    "import socket\nsocket.create_connection(('127.0.0.1', 80), 1)",
    "import socket\nsocket.socketpair()",
    "import urllib.request\nurllib.request.urlopen('http://127.0.0.1')",
    "import http.client\nhttp.client.HTTPConnection('127.0.0.1').request('GET', '/')",
    "import socket\nprint(socket.getaddrinfo('localhost', 80)[0])\nsocket.socket().bind(('', 0))",
    "import asyncio\nasyncio.run(asyncio.sleep(0))",
)
KERNEL = tuple(
    f"import ctypes\nl = ctypes.CDLL(None, use_errno=True)\nassert l.syscall({call}) >= 0"
    for call in (
        *("101, 0, 0, 0, 0", "101, 16, {pid}, 0, 0", "310, {pid}, 0, 0, 0, 0, 0", "311, {pid}, 0, 0, 0, 0, 0"),
        *("272, 0x10000000", "165, 0, 0, 0, 0, 0", "161, b'/'", "105, 0", "106, 0", "157, 22, 0", "250, 0"),
        *("317, 1, 0, 0", "444, 0, 0, 1", "321, 0, 0, 0", "298, 0, 0, 0, 0, 0", "323, 0", "319, b'x', 0", "425, 8, 0"),
        *(
            "41, 2, 1, 0",
            "57",
            "58",
            "56, 17, 0, 0, 0, 0",
            "59, b'/bin/sh', 0, 0",
            "62, {pid}, 9",
            "234, {pid}, {pid}, 9",
        ),
        *("169, 0, 0, 0, 0", "170, b'x', 1", "246, 0", "175, 0", "304, 0"),
    )
)
"""x86-64: ptrace, process_vm_readv and _writev, unshare, mount, chroot, setuid, setgid, prctl(SECCOMP), keyctl, seccomp, landlock, bpf,
perf_event_open, userfaultfd, memfd_create, io_uring_setup, socket, fork, vfork, clone, execve, kill, tgkill, reboot, sethostname,
kexec_load, init_module, open_by_handle_at."""
GREEDY = (
    "x = 'a' * 10**10",
    "x = [0] * 10**10",
    "x = []\nwhile True:\n    x.append('a' * 10**6)",
    "x = {{}}\ni = 0\nwhile True:\n    x[i] = str(i) * 100\n    i += 1",
    "def f(n):\n    return f(n + 1)\nf(0)",
    "import sys\nsys.setrecursionlimit(10**9)\ndef f(n):\n    return f(n + 1)\nf(0)",
    "x = 9**9**9",
    "print(10**10**7)",
    "import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=(99,)).start()",
    "while True:\n    print('x' * 10**5)",
    "import sys\nwhile True:\n    sys.stdout.write('x' * 10**5)",
    "import sys\nwhile True:\n    sys.stderr.write('x' * 10**5)",
    "import os\nwhile True:\n    os.write(1, b'x' * 10**5)",
    "import os\nwhile True:\n    os.write(3, b'x' * 10**5)",
    "while True:\n    pass",
    "import time\ntime.sleep(1000)",
    "import re\nre.match('(a+)+b', 'a' * 64)",
    "sum(range(10**12))",
    "import itertools\nfor _ in itertools.count():\n    pass",
    "input()\ninput()\ninput()",
    "import time\nwhile True:\n    try:\n        time.sleep(99)\n    except BaseException:\n        pass",
    "import signal\nfor s in (1, 2, 15, 24):\n    signal.signal(s, signal.SIG_IGN)\nwhile True:\n    pass",
)
TRICKS = (
    "import os\nos._exit(0)",
    "import sys\nsys.exit(0)",
    "raise SystemExit",
    "quit()",
    "import os\nos.abort()",
    "import ctypes\nctypes.string_at(0)",
    "import os\nfor f in range(64):\n    try:\n        os.close(f)\n    except OSError:\n        pass",
    "import os\nfor f in range(64):\n    try:\n        os.write(f, b'=')\n    except OSError:\n        pass\nos._exit(0)",
    "import sys\nsys.stdout = None\nprint(7)",
    "import builtins\nbuiltins.print = lambda *a: None\nprint(7)",
    "import sys\nsys.modules.clear()",
    "import gc\nfor o in gc.get_objects():\n    if isinstance(o, dict):\n        o.clear()",
    "import sys\nf = sys._getframe()\nwhile f:\n    print(f.f_locals)\n    f = f.f_back",
    "import os\nprint(dict(os.environ))",
    "import os\nos.dup2(1, 3)",
    "import os\nos.chdir('/tmp')",
    "import atexit\natexit.register(print, 7)",
    "import sys\nsys.settrace(lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))\ndef f():\n    pass\nf()",
    "(" * 10**5 + ")" * 10**5,
    "\\x00",
    "print('7' if False else '8')",
    "import importlib\nimportlib.import_module('actors.code_runner')",
)


def hostile_programs(secret: str, place: str, pid: int) -> list[str]:
    """All of them, for one machine."""
    templates = [one.replace("{path!r}", repr(path)) for one in WRITES for path in WRITE_PLACES]
    templates += [one.replace("{path!r}", repr(path)) for one in READS for path in READ_PLACES]
    templates += [one.replace("{path!r}", repr(path)) for one in LISTS for path in LIST_PLACES]
    templates += [*PROCESSES, *SIGNALS, *NETWORK, *KERNEL, *GREEDY]
    filled = [one.replace("{secret}", secret).replace("{place}", place).replace("{pid}", str(pid)) for one in templates]
    return [*(one.replace("{{", "{").replace("}}", "}") for one in filled), *TRICKS]
