"""What SFT and RL do alike around their steps: begin or go on, keep time, save."""

import logging
import time
from collections.abc import Callable
from typing import Any

from actors.types import AdapterRef, StageSpec
from orchestrator.record import checkpoint
from orchestrator.record.checkpoint import Checkpoint, KeepRule, StageState
from orchestrator.record.events import Event
from orchestrator.record.run_files import forget_steps_after
from orchestrator.stage import Stage

log = logging.getLogger(__name__)

Published = tuple[AdapterRef, Any]
"""An adapter's name and the object-store reference of its bytes."""


def begin(stage: Stage, spec: StageSpec) -> StageState | None:
    """Have the learner begin a stage, from its newest checkpoint that holds; returns that one's state, None without one.

    What was written after it is forgotten, and events say so.
    """
    saved, damages = checkpoint.load_latest(stage.directory)
    for problem in damages:
        stage.event(Event.CHECKPOINT_SKIPPED, problem=problem)
    if saved:
        stage.event(Event.RESUMED, saved.state.step)
    forget_steps_after(stage.config.run_dir, stage.name, saved.state.step if saved else 0)
    stage.cluster.learner.begin_stage(spec)
    if saved:
        stage.cluster.learner.load_state(saved.learner)
        log.info("%s goes on from the checkpoint of step %d", stage.name, saved.state.step)
    return saved.state if saved else None


def save(stage: Stage, state: StageState, published: Published) -> None:
    """Checkpoint the learner as it is now, with the task stream's position."""
    started_s, run = time.monotonic(), stage.config.run
    packed = stage.cluster.fetch(published[1])
    saved = Checkpoint(state=state, adapter=packed, learner=stage.cluster.learner.save_state())
    checkpoint.save(stage.directory, saved, KeepRule(num_newest=run.keep_checkpoints, every_steps=run.keep_every_steps))
    size_bytes, seconds = len(saved.adapter) + len(saved.learner), time.monotonic() - started_s
    stage.event(Event.CHECKPOINT, state.step, seconds=round(seconds, 3), size_bytes=size_bytes)
    if stage.mirror and (problem := stage.mirror.try_to_push()):
        stage.event(Event.MIRROR_BEHIND, state.step, problem=problem)


def is_due(step: int, every_steps: int) -> bool:
    """Every so many steps; 0 is never."""
    return every_steps > 0 and step % every_steps == 0


class StepClock:
    """Where a step's time went: `time/rollout_s`, `time/update_s`, `time/publish_s`, `time/step_s`."""

    WAITS_FOR = ("groups to be generated and scored", "the learner's update", "engines to load the adapter", "files")
    """In each part of a step; `files` are metrics, samples and checkpoints, and evaluation counts among them."""

    def __init__(self, begin: Callable[[str], None]) -> None:
        """`begin` is told what is waited for, part after part."""
        self._start_s = self._last_s = time.monotonic()
        self._parts: dict[str, float] = {}
        self._begin = begin
        begin(self.WAITS_FOR[0])

    def mark(self, part: str) -> None:
        """Everything since the last mark was `part`."""
        now = time.monotonic()
        self._parts[f"time/{part}_s"] = now - self._last_s
        self._last_s = now
        self._begin(self.WAITS_FOR[len(self._parts)])

    def metrics(self, num_tokens: float) -> dict[str, float]:
        """With `rollout/tokens_per_s`: tokens generated for the step, over all of its time."""
        step_s = self._last_s - self._start_s
        return {**self._parts, "time/step_s": step_s, "rollout/tokens_per_s": num_tokens / max(step_s, 1e-9)}
