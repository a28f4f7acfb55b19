"""Seconds of processor time to judge a completion of 1,000, 16,000 and 64,000 characters that are all alike, by both verifiers.

    python -m tests.benchmarks.verifiers

Each completion stands as it is, in a box, behind `The answer is` and inside a formula. The slowest of the four is shown. Nothing may
grow faster than the length: the last column says how many times longer the fourfold length took.
"""

import logging
import time

from rewards.label_answer import verify_label
from rewards.math_answer import verify_answer

LENGTHS = (1_000, 16_000, 64_000)
LABELS = ("A", "B", "C", "D")
FILLINGS = {
    "one number": "7", "one blank": " ", "one letter": "x", "one label": "A ", "numbers": "7 ", "words": "so ", "line ends": "\n",
    "full stops": ".", "commas": "1,", "brackets": "(", "closing brackets": ")", "braces": "{", "closing braces": "}",
    "boxes": "\\boxed{", "short boxes": "\\boxed 7 ", "fractions": "\\frac{1}{", "backslashes": "\\", "dollars": "$", "hashes": "#### ",
    "phrases": "the answer is ", "denials": "the answer is not ", "corrections": "Wait, no. ", "thoughts": "<think>",
    "ends of thoughts": "</think>", "answers": "<answer>", "equations": "x=", "signs": "-", "powers": "2^", "ands": "1 and ",
    "colons": "1:", "number words": "twenty ", "hundreds": "hundred and ", "texts": "\\text{", "primes": "'", "percents": "%",
    "stars": "*", "units": "km ", "digits of another script": "７", "superscripts": "²", "Chinese": "答案是", "end marks": "<|a|>",
    "dots": "\\ldots ", "plus minus": "\\pm ", "labels in a list": "A, ", "options": "option ", "matrices": "\\begin{pmatrix}",
}  # fmt: skip
FRAMES = ("{}", "\\boxed{{{}}}", "The answer is {}", "<think>a</think>It is $7+{}$", "The value is {} 7 {} z")


def measure(filling: str, length: int) -> float:
    """The slowest of the frames, in seconds."""
    slowest_s = 0.0
    for frame in FRAMES:
        filled = (filling * (length // len(filling) + 1))[: length // frame.count("{}")]
        text = frame.format(*[filled] * frame.count("{}"))
        for judge in (lambda text: verify_answer(text, "7"), lambda text: verify_label(text, "A", LABELS)):
            started_s = time.process_time()
            judge(text)
            slowest_s = max(slowest_s, time.process_time() - started_s)
    return slowest_s


def main() -> None:
    logging.disable(logging.CRITICAL)  # math-verify logs what it cannot parse
    verify_answer("\\boxed{x+1}", "x+2")
    print(f"| characters of | {' | '.join(f'{length:,}' for length in LENGTHS)} | 64,000 over 16,000 |")
    print("|---" * (len(LENGTHS) + 2) + "|")
    for name, filling in FILLINGS.items():
        seconds = [measure(filling, length) for length in LENGTHS]
        cells = " | ".join(f"{second:.3f}" for second in seconds)
        print(f"| {name} | {cells} | {seconds[2] / max(seconds[1], 1e-6):.1f} |", flush=True)


if __name__ == "__main__":
    main()
