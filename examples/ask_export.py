"""From an export to answers: `python examples/ask_export.py EXPORT QUESTION`. Needs the extra `device` alone."""

import sys

import terse


def main() -> None:
    directory, question = sys.argv[1:3]
    with terse.load_export(directory) as model:
        brief = model.ask(question, temperature=0.0)
        print(f"{brief.mode}: {brief.text}")
        voted = model.ask(question, mode="reasoning", num_completions=4, temperature=0.7, cap=60)
        print(f"4 votes: {voted.answer}, {voted.timings['tokens_per_s']:.0f} tokens/s")


if __name__ == "__main__":
    main()
