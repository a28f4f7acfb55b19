"""A small real command as a process of its own, whose actors can be found and killed."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from actors.engine import MEMORY
from orchestrator.record import events, ledger
from orchestrator.record.run_files import read_metrics

ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS = 8
SFT_STEPS = 12
SETTINGS = [
    "run.name=small",
    "lora.rank=8",
    "lora.alpha=16",
    "engine.max_lora_rank=8",
    "engine.max_num_seqs=32",
    f"sft.num_steps={SFT_STEPS}",
    "sft.rows_per_step=16",
    "sft.learning_rate=4e-3",
    f"rl.num_steps={NUM_STEPS}",
    "rl.groups_per_step=4",
    "rl.group_size=4",
    "rl.checkpoint_every_steps=2",
    "rollout.max_completion_tokens=64",
    "data.train.difficulties=[1]",
    "budget.buckets_tokens=[40]",
    "evaluation.num_tasks=8",
    "evaluation.max_completion_tokens=64",
    "evaluation.caps_tokens=[]",
    "heads.num_tasks=0",
    "scaling.num_tasks=0",
    "export.at_end=false",
]
ACTORS = {
    "engine actor": "ray::InferenceActor",
    "engine core": "VLLM::EngineCore",
    "fork server": "multiprocessing.forkserver",
    "reward": "ray::RewardActor",
    "scoring process": "actors.scoring_process",
    "learner": "ray::LearnerActor",
    "agent": "Agent",
}


class SmallRun:
    """`terse COMMAND --verbose` on the embedded model; its log is read as it comes."""

    def __init__(
        self,
        root: Path,
        command: str,
        *overrides: str,
        through: Sequence[str] = (sys.executable, "-m", "orchestrator"),
        environment: dict[str, str] | None = None,
    ):
        """`through`: what takes the command and its arguments."""
        self.dir = root / "small"
        self.started_s = time.monotonic()
        self.process = subprocess.Popen(
            [
                *(*through, command, "--config", "quickstart", "--verbose"),
                *(f"run.dir={root}", *SETTINGS, *overrides),
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[tuple[float, str]] = []
        """Seconds on the monotonic clock, and a line of the log."""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip()))

    @property
    def log(self) -> str:
        return "\n".join(line for _, line in self.lines)

    @property
    def num_lines(self) -> int:
        return len(self.lines)

    def wait_for_line(self, text: str, timeout_s: float = 240, after: int = 0) -> float:
        """When a line with `text` came, counting from line `after`."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for when, line in self.lines[after:]:
                if text in line:
                    return when
            assert self.process.poll() is None, self.log
            time.sleep(0.05)
        raise AssertionError(f"no line with {text!r} in {timeout_s} s:\n{self.log}")

    def find(self, actor: str) -> list[psutil.Process]:
        """Processes of this run that are such an actor."""
        return [process for process in self.processes() if ACTORS[actor] in _title(process)]

    def processes(self) -> list[psutil.Process]:
        if self.process.poll() is not None:
            return []
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill(self, actor: str) -> tuple[float, list[psutil.Process]]:
        """SIGKILL to one process of that kind; when that was, and it and all that it had started."""
        (process, *_) = self.find(actor)
        family = [process, *process.children(recursive=True)]
        process.kill()
        return time.monotonic(), family

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [row for row in events.read(self.dir) if row["event"] == kind]

    def wait_to_end(self, timeout_s: float) -> None:
        """Until the process ends, or so long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout_s)

    def finish(self, timeout_s: float = 400) -> int:
        status = self.process.wait(timeout_s)
        self._reader.join(timeout=10)
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)

    def check_ledger(self, num_steps: int = NUM_STEPS) -> None:
        """Every step was taken once, and of the prompts none is lost and none was taken twice."""
        rows = ledger.read(self.dir)
        assert ledger.problems(rows) == []
        assert len(rows) == num_steps
        assert [row["step"] for row in read_metrics(self.dir) if row["stage"] == "rl"] == list(range(1, num_steps + 1))


def recovery(run: SmallRun, what: str, killed_s: float, family: list[psutil.Process], lines: tuple[str, str]) -> None:
    """Wait until the run has noticed the loss and goes on, and print how long that took; `family` is gone by then.

    `lines`: what the log says when an actor is lost, and when its successor serves.
    """
    after = next((place for place, (when, _) in enumerate(run.lines) if when >= killed_s), run.num_lines)
    lost_s, serves_s = (run.wait_for_line(line, after=after) for line in lines)
    place = next(place for place, (when, _) in enumerate(run.lines) if when >= serves_s)
    step_s = run.wait_for_line("rl step", after=place)
    assert all(map(is_gone, family)), "what it had started outlives it"
    print(f"\n| {what} | {lost_s - killed_s:.1f} | {serves_s - killed_s:.1f} | {step_s - killed_s:.1f} |")


def adapter_directories() -> set[Path]:
    """Of all engines of this machine, in its memory."""
    return set(MEMORY.glob("terse-adapters-*"))


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
