"""The SFT stage: the adapter learns to reason from traces."""

import time

from actors.types import StageSpec
from configs.schema.run import RunConfig
from orchestrator.data.sft_rows import SftRows
from orchestrator.record import checkpoint
from orchestrator.record.checkpoint import StageState, TaskCursor
from orchestrator.record.interrupt import stop_between_steps
from orchestrator.record.progress import Progress
from orchestrator.rl.batching import shard_rows
from orchestrator.stage import Stage
from orchestrator.stages.steps import begin, is_due, save


def fine_tune(stage: Stage, stream: SftRows) -> None:
    """SFT to `sft.num_steps`, from the stage's newest checkpoint if there is one."""
    with stage.cluster.engines_asleep():
        take_steps(stage, stream)
    stage.tracker.log_directory(checkpoint.list_checkpoints(stage.directory)[-1], "adapter")


def take_steps(stage: Stage, stream: SftRows) -> None:
    config, learner = stage.config, stage.cluster.learner
    state = begin(stage, sft_spec(config)) or StageState()
    num_rows = config.sft.rows_per_step
    with stop_between_steps() as stop, Progress("sft", state.step, config.sft.num_steps) as progress:
        while state.step < config.sft.num_steps:
            started_s = time.monotonic()
            first = state.cursor.next_index
            rows = [stream.at(index) for index in range(first, first + num_rows)]
            update = learner.update(shard_rows(rows, config.learner.num_ranks))
            state = StageState(step=update.policy_version, cursor=TaskCursor(next_index=first + num_rows))
            step_s = time.monotonic() - started_s
            metrics = {"time/step_s": step_s, "train/rows_too_long": float(stream.num_dropped)}
            stage.record(state.step, update.metrics | metrics, progress)
            if (
                stop.is_set
                or state.step == config.sft.num_steps
                or is_due(state.step, config.sft.checkpoint_every_steps)
            ):
                save(stage, state, learner.publish())
            stop.raise_if_set()


def sft_spec(config: RunConfig) -> StageSpec:
    sft = config.sft
    return StageSpec(
        kind="sft",
        num_steps=sft.num_steps,
        learning_rate=sft.learning_rate,
        warmup_frac=sft.warmup_frac,
        weight_decay=sft.weight_decay,
        dropout=config.lora.dropout,
    )
