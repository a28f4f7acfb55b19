"""The command `device`: an export, asked on this machine by llama.cpp.

    python -m deploy.device EXPORT --prompt "37+58-12=?"

Runs with the small extra `device` alone: no torch, vLLM, Ray or MLflow.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from deploy.device.arguments import add_arguments
from deploy.device.benchmark import benchmark_table, run_benchmark
from deploy.device.runtime import Answer, DeviceModel, PromptError, Question, load_export
from deploy.manifest import ExportError

OK, FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130


def run_device(arguments: argparse.Namespace) -> int:
    """Exit status: 0, 1 for an export that cannot be used, 2 for a request that cannot be answered. Problems go to
    stderr in one line each."""
    try:
        with load_export(arguments.directory, arguments.threads, arguments.kv) as device:
            if arguments.benchmark:
                return _benchmark(device, arguments)
            if arguments.interactive:
                return _interact(device, arguments)
            _ask(device, arguments, arguments.prompt)
            return OK
    except PromptError as error:
        print(f"device: {error}", file=sys.stderr)
        return BAD_USAGE
    except (ExportError, RuntimeError, OSError, MemoryError) as error:
        print(f"device: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def as_dict(answer: Answer) -> dict[str, Any]:
    """For `--json`; token ids are left out."""
    result = asdict(answer)
    for completion in result["completions"]:
        completion["num_tokens"] = len(completion.pop("token_ids"))
    return {**result, "text": answer.text}


def _ask(device: DeviceModel, arguments: argparse.Namespace, question: str) -> None:
    request = Question(
        question=question,
        mode=arguments.mode,
        num_completions=arguments.n,
        cap=arguments.cap,
        budget_tokens=arguments.budget,
        temperature=arguments.temperature,
        seed=arguments.seed,
    )
    if arguments.json:
        print(json.dumps(as_dict(device.answer(request))))
        return
    print(describe(device.answer(request, _show)))


def _show(kind: str, value: Any) -> None:
    """Streams the first completion; its siblings are only counted, at the end."""
    if kind == "mode":
        mode, probability = value
        print(f"[{mode}{'' if probability is None else f', p(reasoning needed) = {probability:.2f}'}]", flush=True)
    elif value[0] == 0:
        print(value[1], end="", flush=True)


def describe(answer: Answer) -> str:
    """What stands below the streamed text."""
    lines = [""]
    if len(answer.completions) > 1:
        for number, completion in enumerate(answer.completions):
            score = "" if completion.score is None else f"  score {completion.score:.2f}"
            mark = "*" if number == answer.chosen else " "
            lines.append(
                f"{mark} {number}: {completion.answer or '(no answer)'}{score}  {len(completion.token_ids)} tokens"
            )
    num_tokens = sum(len(completion.token_ids) for completion in answer.completions)
    first, rate = answer.timings["first_token_s"], answer.timings["tokens_per_s"]
    chosen = answer.completions[answer.chosen or 0].score
    lines.append(
        f"answer: {answer.answer or '(none)'}{'' if chosen is None else f' (p(right) = {chosen:.2f})'} · {answer.mode} · "
        f"{num_tokens} tokens · first after {first * 1000:.0f} ms · {rate:.0f} tokens/s"
    )
    return "\n".join(lines)


def _interact(device: DeviceModel, arguments: argparse.Namespace) -> int:
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print("a question a line; an empty line or Ctrl-D ends")
    while True:
        try:
            question = input("> " if is_terminal else "")
        except EOFError:
            return OK
        if not question.strip():
            return OK
        try:
            _ask(device, arguments, question)
        except PromptError as error:
            print(f"device: {error}", file=sys.stderr)


def _benchmark(device: DeviceModel, arguments: argparse.Namespace) -> int:
    result = run_benchmark(device)
    print(json.dumps(result) if arguments.json else benchmark_table(result))
    return OK


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.device", description=__doc__.split("\n")[0])
    add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON line")
    return run_device(parser.parse_args(argv))
