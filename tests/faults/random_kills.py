"""A deterministic RL run whose driver is killed at random moments and resumed, until it is done: the same bits come out.

    python -m tests.faults.random_kills --kills 20 --seed 0

First a run that is left alone, then runs that are killed, each several times. Every other kill comes after a random time
from the start of the process (most of that is starting engines and learner), the others between two operations on files
of the run directory (`die_at`). Compared with the run left alone: every file of the last checkpoint, adapter first, the ledger of
prompts, and all metrics that are not times. Every kill is added to `random_kills.json` in DIRECTORY; a second call on the
same one adds to it, without the run left alone. Exit status 1 when something differs.
"""

import argparse
import hashlib
import json
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from actors import adapters
from orchestrator.record import checkpoint, ledger, run_files
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
    directory.mkdir(parents=True, exist_ok=True)
    found = kill_and_compare(directory, arguments.kills, random.Random(arguments.seed))
    print(json.dumps({key: value for key, value in found.items() if key != "moments"}, indent=2))
    return 0 if found["num_different"] == 0 else 1


def kill_and_compare(directory: Path, num_kills: int, random: random.Random) -> dict[str, Any]:
    """`num_kills` more, over as many runs as that takes; returns what `random_kills.json` has then."""
    started_s = time.monotonic()
    path = directory / "random_kills.json"
    if not path.is_file():
        path.write_text(json.dumps(leave_alone(directory), indent=2))
    found = json.loads(path.read_text())
    before_s, expected = found["seconds"], outcome(directory / "left_alone" / "small")
    last = found["num_kills"] + num_kills
    root = directory / f"killed_{found['num_runs'] + 1}"
    while found["num_kills"] < last or root.exists():
        may_end = found["num_kills"] >= last
        by_time = random.random() < 0.5
        at_operation = 0 if may_end or by_time else random.randint(1, MAX_OPERATION)
        run = SmallRun(root, "train", *settings(directory), through=dying(at_operation, root / "small"))
        after_s = random.uniform(0.0, found["latest_s"])
        if by_time and not may_end:
            run.wait_to_end(after_s)
            run.process.kill()
        if run.finish() == 0:
            found["num_different"] += outcome(run.dir) != expected
            found["num_runs"] += 1
            root = directory / f"killed_{found['num_runs'] + 1}"
        else:
            require(run.process.returncode == -signal.SIGKILL, run.log)
            what = f"{after_s:.1f} s after its start" if by_time else f"before operation {at_operation}"
            moment = f"{root.name}, {what}, {len(ledger.read(run.dir))} of {NUM_STEPS} steps taken"
            found["moments"].append(moment)
            found["num_kills"] += 1
            print(f"kill {found['num_kills']}: {moment}", flush=True)
        found["seconds"] = before_s + round(time.monotonic() - started_s)
        path.write_text(json.dumps(found, indent=2))
    return found


def leave_alone(directory: Path) -> dict[str, Any]:
    """Run SFT, then RL undisturbed; the books to begin with."""
    sft = SmallRun(directory / "sft", "sft")
    require(sft.finish() == 0, sft.log)
    alone = SmallRun(directory / "left_alone", "train", *settings(directory))
    require(alone.finish() == 0, alone.log)
    first_s, last_s = (alone.wait_for_line(f"rl step {step}/") - alone.started_s for step in (1, NUM_STEPS))
    return {
        "adapter_sha256": outcome(alone.dir)["files"][adapters.WEIGHTS_FILE],
        "latest_s": first_s + MAX_STEPS_FRAC * (last_s - first_s),
        "num_kills": 0,
        "num_runs": 0,
        "num_different": 0,
        "seconds": 0,
        "moments": [],
    }


def settings(directory: Path) -> list[str]:
    return [f"sft.adapter={directory}/sft/small/sft/step_{SFT_STEPS:06d}", *SETTINGS]


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
