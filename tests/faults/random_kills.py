"""A deterministic RL run whose driver is killed at random moments and resumed, until it is done: the same bits come out.

    python -m tests.faults.random_kills --kills 20 --seed 0

First a run that is left alone, then runs that are killed, each several times. Every other kill comes after a random time
from the start of the process (most of that is starting engines and learner), the others between two operations on files
of the run directory. Compared with the run left alone: every file of the last checkpoint, adapter first, the ledger of
prompts, and all metrics that are not times. What is found goes to `random_kills.json` in DIRECTORY as well.
"""

import argparse
import hashlib
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from actors import adapters
from orchestrator import checkpoint, ledger, run_files
from tests.faults.small_run import SFT_STEPS, SmallRun

NUM_STEPS = 6
SETTINGS = [
    *("run.deterministic=true", f"rl.num_steps={NUM_STEPS}", "rl.checkpoint_every_steps=1", "rl.kl_beta=1e-3"),
    # HAPO remembers earlier groups, and the weight of the KL moves: both are state that must come back.
    *("reward.length=hapo", "rl.kl_target=0.01"),
]
MAX_OPERATION = 90
"""About four steps with their checkpoints."""
MAX_STEPS_FRAC = 0.5
"""Of the time from the first step to the end, within which kills by time come."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, default=None, help="a temporary one by default")
    arguments = parser.parse_args()
    directory = arguments.directory or Path(tempfile.mkdtemp(prefix="random_kills_"))
    found = kill_and_compare(directory, arguments.kills, random.Random(arguments.seed))
    (directory / "random_kills.json").write_text(json.dumps(found, indent=2))
    print(json.dumps({key: value for key, value in found.items() if key != "moments"}, indent=2))
    return 0 if found["num_different"] == 0 else 1


def kill_and_compare(directory: Path, num_kills: int, random: random.Random) -> dict[str, Any]:
    started_s = time.monotonic()
    sft = SmallRun(directory / "sft", "sft")
    require(sft.finish() == 0, sft.log)
    settings = [f"sft.adapter={sft.dir}/sft/step_{SFT_STEPS:06d}", *SETTINGS]
    alone = SmallRun(directory / "left_alone", "train", *settings)
    require(alone.finish() == 0, alone.log)
    begin_s, first_s, *_, last_s = (
        alone.started_s,
        *(alone.wait_for_line(f"rl step {step}/") for step in (1, NUM_STEPS)),
    )
    latest_s = first_s - begin_s + MAX_STEPS_FRAC * (last_s - first_s)
    expected = outcome(alone.dir)
    moments: list[str] = []
    num_runs = num_different = 0
    run_root: Path | None = None
    while len(moments) < num_kills or run_root is not None:
        if run_root is None:
            num_runs += 1
            run_root = directory / f"killed_{num_runs}"
        is_left_alone = len(moments) >= num_kills
        by_time = random.random() < 0.5
        at_operation = 0 if is_left_alone or by_time else random.randint(1, MAX_OPERATION)
        run = SmallRun(run_root, "train", *settings, through=dying(at_operation, run_root / "small"))
        if by_time and not is_left_alone:
            after_s = random.uniform(0.0, latest_s)
            run.wait_to_end(after_s)
            run.process.kill()
        if run.finish() == 0:
            num_different += outcome(run.dir) != expected
            run_root = None
        else:
            require(run.process.returncode == -9, run.log)
            what = f"{after_s:.1f} s after its start" if by_time else f"operation {at_operation}"
            moments.append(f"run {num_runs}, {what}, {len(ledger.read(run.dir))} of {NUM_STEPS} steps done")
            print(f"kill {len(moments)}: {moments[-1]}", flush=True)
    return {
        "num_kills": len(moments),
        "num_runs": num_runs,
        "num_different": num_different,
        "adapter_sha256": expected["files"][adapters.WEIGHTS_FILE],
        "seconds": round(time.monotonic() - started_s),
        "moments": moments,
    }


def dying(at_operation: int, directory: Path) -> tuple[str, ...]:
    """What starts the command line so that it dies there."""
    return (sys.executable, "-m", "tests.faults.die_at", str(at_operation), str(directory))


def outcome(run_dir: Path) -> dict[str, Any]:
    """Of a finished run, everything that has to be the same."""
    last = checkpoint.list_checkpoints(run_dir / "rl")[-1]
    rows = ledger.read(run_dir)
    require(ledger.problems(rows) == [], "\n".join(ledger.problems(rows)))
    return {
        "step": last.name,
        "files": {name: hashlib.sha256((last / name).read_bytes()).hexdigest() for name in checkpoint.FILES},
        "ledger": rows,
        "metrics": [
            {key: value for key, value in row.items() if not key.endswith("_s")}
            for row in run_files.read_metrics(run_dir)
        ],
    }


def require(is_so: bool, why: str) -> None:
    if not is_so:
        raise RuntimeError(why)


if __name__ == "__main__":
    sys.exit(main())
