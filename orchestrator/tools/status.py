"""Where a run stands, from its files alone: `terse status RUN`, on any machine that sees the directory."""

import fcntl
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from configs.load import load_config
from configs.schema.run import RunConfig
from orchestrator.record import checkpoint, events, run_files
from orchestrator.record.metrics import DROP_REASONS
from orchestrator.report.run import require_run_dir

Row = dict[str, Any]
NUM_RECENT = 10
"""Steps that speeds and drops are taken from."""


def read_status(run_dir: Path) -> dict[str, str]:
    """Name → a line for people, at most ten. Raises UserError for a directory that is no run, or a damaged file."""
    require_run_dir(run_dir)
    config = load_config(run_dir / "config.yaml", [])
    happened, steps = events.read(run_dir), run_files.read_metrics(run_dir)
    lines = {
        "run": f"{run_dir}: {config.model.path}, {', '.join(source.label for source in config.data.train)}",
        "state": describe_state(run_dir, happened),
    }
    if steps:
        recent = [row for row in steps if row["stage"] == steps[-1]["stage"]][-NUM_RECENT:]
        lines["stage"] = describe_stage(config, recent)
        lines |= describe_steps(recent)
    if saved := describe_checkpoint(run_dir):
        lines["checkpoint"] = saved
    lines["losses"] = describe_losses(happened)
    if notable := events.summarise(happened)["notable"]:
        last = notable[-1]
        lines["last event"] = (
            f"{last['time']} UTC, {last['stage']}: {last['event']}{', ' if last['details'] else ''}{last['details']:.200}"
        )
    if (run_dir / "report.html").is_file():
        lines["report"] = str(run_dir / "report.html")
    return lines


def describe_state(run_dir: Path, happened: list[Row]) -> str:
    """Whether a process is at it, and how the last one ended."""
    if is_locked(run_dir):
        begun = [row["stage"] for row in happened if row["event"] == events.Event.STAGE_BEGIN]
        return f"running{f', in {begun[-1]}' if begun else ''}"
    if not happened:
        return "not running, nothing has begun"
    last = happened[-1]
    ends = {
        events.Event.STAGE_END: f"not running; {last['stage']} was the last to end",
        events.Event.STAGE_INTERRUPTED: f"interrupted in {last['stage']}; the same command goes on",
        events.Event.STAGE_FAILED: f"failed in {last['stage']}: {last.get('cause', '')}",
    }
    return ends.get(last["event"], f"not running: its process was killed in {last['stage']}; the same command goes on")


def describe_stage(config: RunConfig, recent: list[Row]) -> str:
    """`rl, step 37 of 200, 4.2 s a step, about 11 min left`"""
    stage, step = recent[-1]["stage"], int(recent[-1]["step"])
    num_steps = config.sft.num_steps if stage == "sft" else config.rl.num_steps
    seconds = _mean(recent, "time/step_s")
    left = f", about {_duration((num_steps - step) * seconds)} left" if step < num_steps else ", done"
    return f"{stage}, step {step} of {num_steps}, {seconds:.1f} s a step{left}"


def describe_steps(recent: list[Row]) -> dict[str, str]:
    """What RL learns, how fast, and how healthy it is; for SFT its loss."""
    if recent[-1]["stage"] != "rl":
        return {"learning": f"loss {_mean(recent, 'train/loss'):.3f}"}
    dropped = sum(row.get(f"rollout/dropped_{reason}", 0) for row in recent for reason in DROP_REASONS)
    return {
        "learning": f"reward {_mean(recent, 'reward/mean'):.2f}, accuracy {_mean(recent, 'reward/accuracy'):.1%}, "
        f"{_mean(recent, 'rollout/completion_tokens_mean'):.0f} tokens a completion",
        "speed": f"{_mean(recent, 'rollout/tokens_per_s'):,.0f} tokens/s; rollouts {_mean(recent, 'time/rollout_s'):.1f} s, "
        f"update {_mean(recent, 'time/update_s'):.1f} s, publishing {_mean(recent, 'time/publish_s'):.1f} s",
        "health": f"staleness at most {max(row.get('rollout/staleness_max', 0) for row in recent):.0f}, logprob gap "
        f"{_mean(recent, 'rollout/logprob_gap_mean'):.4f} nats, {dropped:.0f} groups dropped in {len(recent)} steps",
    }


def describe_checkpoint(run_dir: Path) -> str:
    """The newest, and how old it is; empty without one."""
    for stage in ("rl", "sft"):
        if found := checkpoint.list_checkpoints(run_dir / stage):
            age_s = datetime.now(UTC).timestamp() - found[-1].stat().st_mtime
            return f"{stage}/{found[-1].name}, {_duration(age_s)} old"
    return ""


def describe_losses(happened: list[Row]) -> str:
    """Actors that were lost and made again, over all resumes."""
    roles = Counter(row.get("role", "actor") for row in happened if row["event"] == events.Event.RESTARTED)
    again = sum(row["event"] == events.Event.REDISPATCHED for row in happened)
    lost = ", ".join(f"{count} × {role}" for role, count in sorted(roles.items())) or "none"
    return f"{lost}; {again} calls made again"


def is_locked(run_dir: Path) -> bool:
    """Whether a process of this machine (or one whose locks this file system shows) works in the directory."""
    path = run_dir / run_files.LOCK_FILE
    if not path.is_file():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def render(lines: dict[str, str]) -> str:
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines.items())


def _mean(rows: list[Row], name: str) -> float:
    found = [row[name] for row in rows if name in row]
    return sum(found) / len(found) if found else 0.0


def _duration(seconds: float) -> str:
    """`40 s`, `11 min`, `3.5 h`"""
    if seconds < 90:
        return f"{max(0.0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
