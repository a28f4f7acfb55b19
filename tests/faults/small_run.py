"""A small real run as a process of its own, whose actors can be found and killed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = [
    "run.name=small",
    "lora.rank=8",
    "lora.alpha=16",
    "engine.max_lora_rank=8",
    "engine.max_num_seqs=32",
    "sft.num_steps=12",
    "sft.rows_per_step=16",
    "sft.learning_rate=4e-3",
    "rl.num_steps=8",
    "rl.groups_per_step=4",
    "rl.group_size=4",
    "rl.checkpoint_every_steps=2",
    "rollout.max_completion_tokens=64",
    "data.train.difficulties=[1]",
    "budget.buckets_tokens=[40]",
    "evaluation.num_tasks=8",
    "evaluation.max_completion_tokens=64",
    "evaluation.caps_tokens=[]",
]
ACTORS = {
    "rollout": "ray::RolloutActor",
    "engine": "VLLM::EngineCore",
    "worker": "VLLM::Worker",
    "reward": "ray::RewardActor",
    "learner": "ray::LearnerRank",
}


class SmallRun:
    """`terse run` on the embedded model; its log is read as it comes."""

    def __init__(self, root: Path, *overrides: str):
        self.dir = root / "small"
        command = [sys.executable, "-m", "orchestrator", "run", "--config", "quickstart", "--json"]
        self.process = subprocess.Popen(
            [*command, f"run.dir={root}", *SETTINGS, *overrides],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.lines: list[tuple[float, str]] = []
        """Seconds on the monotonic clock, and a line of the log."""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.append((time.monotonic(), line.rstrip()))

    @property
    def log(self) -> str:
        return "\n".join(line for _, line in self.lines)

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
        return [process for process in self.processes() if _title(process).startswith(ACTORS[actor])]

    def processes(self) -> list[psutil.Process]:
        if self.process.poll() is not None:
            return []
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill(self, actor: str, signum: int = signal.SIGKILL) -> tuple[float, list[psutil.Process]]:
        """Signal one process of that kind; when that was, and it and all that it had started."""
        (process, *_) = self.find(actor)
        family = [process, *process.children(recursive=True)]
        process.send_signal(signum)
        return time.monotonic(), family

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

    def steps(self) -> list[int]:
        """RL steps in `metrics.jsonl`, in order."""
        lines = map(json.loads, (self.dir / "metrics.jsonl").read_text().splitlines())
        return [line["step"] for line in lines if line["stage"] == "rl"]


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def _title(process: psutil.Process) -> str:
    try:
        return "".join(process.cmdline()[:1])
    except psutil.NoSuchProcess:
        return ""
