"""Verifiers for a scoring process under test: on cue they do what sympy does once in a while."""

import itertools
import os
import signal
import time

from rewards.base import AnswerVerdict
from rewards.math_answer import verify_answer


def verify_unless_told_otherwise(text: str, reference_answer: str) -> AnswerVerdict:
    """`HANG`, `HANG IN C`, `SLEEP`, `EXIT`, `KILL`, `MEMORY`, `RAISE` do that; other texts are verified."""
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
    return verify_answer(text, reference_answer)
