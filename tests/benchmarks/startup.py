"""Seconds from the start of a command to the first token that an engine generates.

    python -m tests.benchmarks.startup [--rounds 3] [--config quickstart] [key=value …]

Each round is two processes: one starts what `terse evaluate` starts, the other what `terse run` does, a learner too. The
first round, whose files may have to come from the disk, is printed and not counted.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

COMMANDS = {"evaluate": False, "run": True}
"""Whether there is a learner."""
MARKS = ["imports", "ray", "tokenizer", "engine", "first token"]


def start(config_name: str, overrides: list[str], has_learner: bool, started_s: float) -> dict[str, float]:
    """Seconds since `started_s` (of `time.time`) at each of `MARKS`."""
    at: dict[str, float] = {}

    def mark(name: str) -> None:
        at[name] = time.time() - started_s

    from configs.load import load_config
    from orchestrator.cluster.ray_address import prepare_own_cluster

    prepare_own_cluster()
    from actors.tokenizer import load_tokenizer
    from actors.types import BASE_VERSION, Sampling
    from configs.models import resolve_model_path
    from orchestrator import pipeline  # noqa: F401 (what a command imports)
    from orchestrator.cluster.cluster import ray_session, start_cluster
    from orchestrator.data.prompts import Prompter

    config = load_config(config_name, overrides)
    path = str(resolve_model_path(config.model.path))
    mark("imports")
    with ThreadPoolExecutor(1) as reader, ExitStack() as stack:
        tokenizer = reader.submit(load_tokenizer, path, config.model)
        stack.enter_context(ray_session(config))
        mark("ray")
        with start_cluster(config, path, has_learner=has_learner) as cluster:
            prompt = Prompter(config, tokenizer.result()).at(0)[1]
            mark("tokenizer")
            cluster.engines.wait_for(1)
            mark("engine")
            sampling = Sampling(temperature=0.0, max_tokens=1)
            cluster.engines.ask(lambda actor: actor.generate.remote(prompt, 1, sampling, BASE_VERSION))
            mark("first token")
    return at


def measure(arguments: argparse.Namespace, command: str) -> dict[str, float]:
    line = [sys.executable, "-m", "tests.benchmarks.startup", "--config", arguments.config, "--measure", command]
    output = subprocess.run(
        [*line, "--started-s", str(time.time()), *arguments.overrides],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},
    )
    results = [row for row in output.stdout.splitlines() if row.startswith("RESULT")]
    if not results:
        raise RuntimeError(output.stderr[-3000:])
    return json.loads(results[0].removeprefix("RESULT"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--config", default="quickstart")
    parser.add_argument("--measure", choices=[*COMMANDS], help=argparse.SUPPRESS)
    parser.add_argument("--started-s", type=float, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="key=value settings")
    arguments = parser.parse_args()
    if arguments.measure:
        at = start(arguments.config, arguments.overrides, COMMANDS[arguments.measure], arguments.started_s)
        print("RESULT", json.dumps(at), flush=True)
        return
    for command in COMMANDS:
        rounds = []
        for number in range(arguments.rounds + 1):
            at = measure(arguments, command)
            marks = ", ".join(f"{name} {at[name]:.1f}" for name in MARKS)
            print(f"{command}, {'first' if number == 0 else f'round {number}'}: {marks}", flush=True)
            rounds.append(at["first token"])
        print(f"{command}: {statistics.median(rounds[1:]):.1f} s to the first token", flush=True)


if __name__ == "__main__":
    main()
