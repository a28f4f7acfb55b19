"""What every stage is given, and the bookkeeping that all stages share."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.types import Prompt
from configs.schema import RunConfig
from orchestrator.cluster import Cluster
from orchestrator.progress import Progress
from orchestrator.run_files import append_metrics
from orchestrator.tracking import Tracker

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

    @property
    def directory(self) -> Path:
        """Checkpoints of this stage."""
        return self.config.run_dir / self.name

    def prompt_text(self, prompt: Prompt) -> str:
        """The prompt as text, chat tags left out."""
        return self.tokenizer.decode(prompt.token_ids, skip_special_tokens=True)

    def record(self, step: int, metrics: dict[str, float], progress: Progress) -> None:
        """One step's metrics: to the run directory, to MLflow, and to whoever watches."""
        append_metrics(self.config.run_dir, self.name, step, metrics)
        self.tracker.log_metrics(metrics, step)
        progress.update(step, metrics)
