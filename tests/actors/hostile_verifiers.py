"""Verifiers for a scoring process under test: on cue they do what sympy does once in a while."""

import itertools
import os
import sys
import time

from rewards.base import AnswerVerdict, Reference
from rewards.label_answer import verify_label
from rewards.math_answer import verify_answer


def verify_unless_told_otherwise(text: str, reference: Reference) -> AnswerVerdict | bool:
    """`HANG`, `HANG IN C`, `SLEEP`, `EXIT`, `KILL`, `MEMORY`, `RAISE`, `FORK`, `READ` do that, `SAY …` and `FLOOD` write to the owner; other texts are verified."""
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
            os.abort()
        case "MEMORY":
            bytearray(64 * 2**30)
        case "RAISE":
            raise KeyError("a bug")
        case "FORK":
            while True:
                os.fork()
        case "READ":
            return bool(open(f"/proc/{os.getppid()}/environ").read())
        case "PRINT":
            for _ in range(64):
                print("x" * 2**16, flush=True)
            return True
        case "NONSENSE":
            return "yes"  # type: ignore[return-value]
        case "QUESTION":
            return reference.question == "37+58-12=?" and reference.fields["hint"] == [95]
        case "FLOOD":
            while True:
                say(b"x" * 2**16)
    if text.startswith("SAY "):
        say(text.removeprefix("SAY ").encode() + b"\n")
    if reference.labels:
        return verify_label(text, reference.answer, reference.labels)
    return verify_answer(text, reference.answer)


def say(data: bytes) -> None:
    """To the owner, past the protocol."""
    os.write(int(sys.argv[sys.argv.index("--socket-fd") + 1]), data)
