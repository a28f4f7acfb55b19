"""RL on the embedded model while something random is killed again and again; then the books are checked.

    python -m tests.faults.soak --minutes 60                      (or `make soak MINUTES=60`)

Every 45 s SIGKILL goes to an engine actor, an engine's core process, a reward actor, a scoring process or the learner.
After the time the run goes on for `--calm-minutes` without kills, since an actor that lives for two minutes cannot show
whether it grows, and is then asked to stop (SIGINT). Then: steps are consecutive, no prompt is lost or taken twice (the
run's ledger), and memory is flat: resident bytes without shared pages, sampled every 5 s, a straight line fitted over
time; for actors one slope over all their lives, each life with a level of its own, the first 120 s left out. All figures
go to `soak.json` in the run directory. Exit status 1 when something does not hold.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from orchestrator.record import ledger
from tests.faults.small_run import SFT_STEPS, SmallRun

VICTIMS = ("engine actor", "engine core", "reward", "scoring process", "learner")
WATCHED = ("engine actor", "engine core", "reward", "learner")
SAMPLE_EVERY_S = 5.0
YOUNG_S = 120.0
"""A process still loads what it needs and fills its pools and caches."""
MIN_LIFE_S = 600.0
"""A role of which no process was watched for so long cannot be judged."""
MAX_GROWTH_FRAC = 0.1
"""Of the mean, over an hour."""
STALLED_S = 180.0
"""Without a step for so long, the run hangs."""
SETTINGS = [
    # As good as endless, and with a learning rate that leaves the policy as it is: groups must go on differing.
    *("rl.num_steps=1000000", "rl.learning_rate=1e-9", "rl.checkpoint_every_steps=5"),
    *("cluster.max_actor_losses=100000", "cluster.max_learner_restarts=100000"),
]


@dataclass
class Memory:
    """Samples of the processes of one role: process id → (seconds of life, bytes)."""

    by_process: dict[int, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, process: psutil.Process) -> None:
        try:
            age_s, info = time.time() - process.create_time(), process.memory_info()
        except psutil.NoSuchProcess:
            return
        if age_s > YOUNG_S:
            self.by_process[process.pid].append((age_s, info.rss - info.shared))

    def figures(self) -> dict[str, float]:
        """Mean MiB, MiB an hour by least squares with one level per process, and for how long one was watched at most."""
        lives = [np.array(samples) for samples in self.by_process.values() if len(samples) > 2]
        if not lives:
            return {}
        centred = np.concatenate([life - life.mean(axis=0) for life in lives])
        seconds, sizes = centred[:, 0], centred[:, 1]
        slope = float(seconds @ sizes / (seconds @ seconds))
        return {
            "mean_mib": round(float(np.concatenate(lives)[:, 1].mean()) / 2**20, 1),
            "mib_per_hour": round(slope * 3600 / 2**20, 1),
            "longest_s": round(max(float(np.ptp(life[:, 0])) for life in lives)),
            "num_processes": len(lives),
            "num_samples": len(centred),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--calm-minutes", type=float, default=15.0)
    parser.add_argument("--kill-every-s", type=float, default=45.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, default=None, help="a temporary one by default")
    arguments = parser.parse_args()
    directory = arguments.directory or Path(tempfile.mkdtemp(prefix="soak_"))
    sft = SmallRun(directory / "sft", "sft")
    if sft.finish() != 0:
        raise RuntimeError(sft.log)
    run = SmallRun(directory, "train", f"sft.adapter={sft.dir}/sft/step_{SFT_STEPS:06d}", *SETTINGS)
    try:
        kills, memory = torment(
            *(run, arguments.minutes * 60, arguments.calm_minutes * 60),
            *(arguments.kill_every_s, random.Random(arguments.seed)),
        )
    finally:
        run.close()
        (directory / "log.txt").write_text(run.log)
    found = {"minutes": arguments.minutes, "calm_minutes": arguments.calm_minutes, **judge(run, kills, memory)}
    text = json.dumps(found, indent=2)
    (run.dir / "soak.json").write_text(text)
    print(f"{text}\n{run.dir / 'soak.json'}")
    return 1 if found["problems"] else 0


def torment(
    run: SmallRun, duration_s: float, calm_s: float, kill_every_s: float, random: random.Random
) -> tuple[Counter[str], dict[str, Memory]]:
    """Kill and measure for `duration_s`, measure for `calm_s`, stop the run; what was killed, and memory by role."""
    run.wait_for_line("rl step 1/")
    start_s = time.monotonic()
    calm_from_s = start_s + duration_s
    next_kill_s, next_sample_s = start_s + kill_every_s, start_s
    kills: Counter[str] = Counter()
    memory = {role: Memory() for role in ("driver", *WATCHED)}
    driver = psutil.Process(run.process.pid)
    while (now := time.monotonic()) < calm_from_s + calm_s:
        if run.process.poll() is not None:
            raise RuntimeError(f"the run ended by itself:\n{run.log[-5000:]}")
        if now >= next_sample_s:
            next_sample_s += SAMPLE_EVERY_S
            memory["driver"].add(driver)
            for role in WATCHED:
                for process in run.find(role):
                    memory[role].add(process)
        if next_kill_s <= now < calm_from_s:
            next_kill_s += kill_every_s
            victim = random.choice(VICTIMS)
            if found := run.find(victim):
                random.choice(found).kill()
                kills[victim] += 1
                print(f"{now - start_s:6.0f} s: {victim} killed; {last_step(run)}", flush=True)
        if now - max((when for when, line in run.lines if "rl step" in line), default=now) > STALLED_S:
            raise RuntimeError(f"no step for {STALLED_S:.0f} s:\n{run.log[-5000:]}")
        time.sleep(0.5)
    os.kill(run.process.pid, signal.SIGINT)
    run.finish()
    return kills, memory


def last_step(run: SmallRun) -> str:
    return next((line for _, line in reversed(run.lines) if "rl step" in line), "no step yet")[:60]


def judge(run: SmallRun, kills: Counter[str], memory: dict[str, Memory]) -> dict[str, Any]:
    """All figures, and what does not hold."""
    rows = ledger.read(run.dir)
    figures = {role: samples.figures() for role, samples in memory.items()}
    return {
        "kills": dict(kills),
        "num_steps": len(rows),
        "num_prompts": sum(len(row["trained"]) + len(row["dropped"]) for row in rows),
        "restarted": dict(Counter(row["role"] for row in run.events("restarted"))),
        "redispatched": len(run.events("redispatched")),
        "memory": figures,
        "problems": ledger.problems(rows) + growth_problems(figures),
    }


def growth_problems(figures: dict[str, dict[str, float]]) -> list[str]:
    """`figures`: `Memory.figures` by role."""
    problems = []
    for role, row in figures.items():
        if row.get("longest_s", 0.0) < MIN_LIFE_S:
            problems.append(
                f"memory of {role}: no process was watched for {MIN_LIFE_S:.0f} s; give more --calm-minutes"
            )
        elif row["mib_per_hour"] > MAX_GROWTH_FRAC * row["mean_mib"]:
            problems.append(f"memory of {role}: grows by {row['mib_per_hour']} MiB an hour, mean {row['mean_mib']} MiB")
    return problems


if __name__ == "__main__":
    sys.exit(main())
