"""Verifiers for a scoring process under test: on cue they do what sympy does once in a while."""

import itertools
import os
import signal
import sys
import time

from rewards.base import AnswerVerdict
from rewards.math_answer import verify_answer


def verify_unless_told_otherwise(text: str, reference_answer: str) -> AnswerVerdict:
    """`HANG`, `HANG IN C`, `SLEEP`, `EXIT`, `KILL`, `MEMORY`, `RAISE` do that, `SAY …` and `FLOOD` write to the owner; other texts are verified."""
    match text:
        case "HANG":
            while True:
                pass
        case "HANG IN C":
            sum(itertools.repeat(0))  # never lets go of the interpreter's lock, never looks at signals
        case "SLEEP":
            time.sleep(3600)
        case "EXIT":
            os._exit(0)
        case "KILL":
            os.kill(os.getpid(), signal.SIGKILL)
        case "MEMORY":
            bytearray(64 * 2**30)
        case "RAISE":
            raise KeyError("a bug")
        case "FLOOD":
            while True:
                say(b"x" * 2**16)
    if text.startswith("SAY "):
        say(text.removeprefix("SAY ").encode() + b"\n")
    return verify_answer(text, reference_answer)


def say(data: bytes) -> None:
    """To the owner, past the protocol."""
    os.write(int(sys.argv[sys.argv.index("--socket-fd") + 1]), data)
