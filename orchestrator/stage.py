"""What every stage is given, and the bookkeeping that all stages share."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.types import Prompt
from configs.schema.run import RunConfig
from orchestrator.cluster.cluster import Cluster
from orchestrator.record import events
from orchestrator.record.dashboard import Dashboard
from orchestrator.record.events import Event
from orchestrator.record.metrics import DROP_REASONS
from orchestrator.record.mirror import Mirror
from orchestrator.record.progress import Progress
from orchestrator.record.run_files import append_metrics
from orchestrator.record.tracking import Tracker

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """One stage of one run, while it runs."""

    name: str
    """`sft`, `rl`, `heads` or `evaluate`"""
    config: RunConfig
    cluster: Cluster
    tracker: Tracker
    tokenizer: Any
    base_dir: Path
    """Of the base that learner and engines load"""
    dashboard: Dashboard = field(default_factory=Dashboard)
    mirror: Mirror | None = None
    """Where checkpoints are copied to."""

    @property
    def directory(self) -> Path:
        """Checkpoints of this stage."""
        return self.config.run_dir / self.name

    def prompt_text(self, prompt: Prompt) -> str:
        """The prompt as text, chat tags left out."""
        return self.tokenizer.decode(prompt.token_ids, skip_special_tokens=True)

    def record(self, step: int, metrics: dict[str, float], progress: Progress) -> None:
        """One step's metrics: to the run directory, to Ray's dashboard, to MLflow, and to whoever watches."""
        append_metrics(self.config.run_dir, self.name, step, metrics)
        if dropped := num_dropped(metrics):
            self.event(Event.DROPPED, step, **dropped)
        self.show({"step": float(step), **metrics})
        self.tracker.log_metrics(metrics, step)
        progress.update(step, metrics)

    def show(self, metrics: dict[str, float]) -> None:
        """On Ray's dashboard, which has only the newest values."""
        self.dashboard.show(metrics, run=self.config.run.name, stage=self.name)

    def event(self, event: Event, step: int | None = None, **details: Any) -> None:
        """Write down what happened, in `events.jsonl`."""
        events.append(self.config.run_dir, self.name, event, step, **details)


def num_dropped(metrics: dict[str, float]) -> dict[str, int]:
    """Reason → groups dropped for it, of a step's metrics; reasons that dropped none are left out."""
    prefix = "rollout/dropped_"
    counts = {reason: int(metrics.get(f"{prefix}{reason}", 0)) for reason in DROP_REASONS}
    return {reason: count for reason, count in counts.items() if count}
