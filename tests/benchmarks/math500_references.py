"""How the verifier judges MATH-500's own reference answers as answers, and other ones in their stead.

    python -m tests.benchmarks.math500_references data/math500.jsonl [--seed 0]

Each reference is given in a box as text and in bold, and in a sentence; then 2,500 random pairs of two different references, one as
the answer to the other's task. What came out wrong is listed.
"""

import argparse
import json
import logging
import random
from pathlib import Path

from rewards.base import Outcome
from rewards.math_answer import verify_answer

FRAMES = {"text": r"\boxed{\text{%s}}", "bold": r"\boxed{\mathbf{%s}}", "sentence": "The answer is %s."}
NUM_PAIRS = 2_500


def main() -> None:
    parser = argparse.ArgumentParser(description="Verdicts on MATH-500's reference answers.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)  # math-verify logs what it cannot parse
    references = [json.loads(line)["answer"] for line in arguments.file.read_text(encoding="utf-8").splitlines()]
    for name, frame in FRAMES.items():
        wrong = [text for text in references if verify_answer(frame % text, text).outcome != Outcome.CORRECT]
        print(f"{name}: {len(references) - len(wrong)} of {len(references)} right", *wrong, sep="\n  ")
    rng = random.Random(arguments.seed)
    pairs = [pair for _ in range(NUM_PAIRS) if (pair := rng.sample(references, 2))[0] != pair[1]]
    found = [pair for pair in pairs if verify_answer(FRAMES["sentence"] % pair[0], pair[1]).outcome == Outcome.CORRECT]
    print(f"pairs: {len(found)} of {len(pairs)} different ones judged equal", *found, sep="\n  ")


if __name__ == "__main__":
    main()
