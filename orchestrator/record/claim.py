"""A run directory and the configuration that it belongs to: made, claimed, or refused.

A second call on one directory may change what the files there do not depend on, and nothing else.
"""

import logging
from pathlib import Path

from actors import files
from actors.heads import HEADS_FILE
from configs.errors import UserError
from configs.load import ConfigError, as_flat_dict, dump_config, load_config
from configs.schema.run import RunConfig
from orchestrator.record import run_files
from orchestrator.record.events import EVENTS_FILE

log = logging.getLogger(__name__)

FREE_SETTINGS = (
    *("cluster.", "tracking.", "evaluation.", "scaling.", "protocols.", "export.", "sweep."),
    *("run.dir", "run.mirror", "run.keep_"),
    *("rollout.generate_timeout_s", "learner.call_timeout_s"),
    *("sft.checkpoint_every_steps", "rl.checkpoint_every_steps", "rl.evaluate_every_steps"),
)
"""What may change between two calls on one run directory without making its files lie: keys or their beginnings."""
PLACEMENT_SETTINGS = (
    *(
        "engine.gpu_memory_frac",
        "engine.num_",
        "engine.max_num_seqs",
        "engine.max_batched_tokens",
        "engine.kv_cache_gib",
    ),
    *("learner.num_", "learner.micro_batch_tokens", "learner.gradient_checkpointing"),
    *("rollout.num_actors", "reward.num_actors", "reward.deadline_s"),
)
"""Placement and memory, which may change too unless the run is deterministic: they round differently."""
RAY_PACKAGES = "working_dir_files"
"""The directory in a Ray session under which `ray job submit --working-dir` unpacks what it was given."""
HEADS_SETTINGS = ("heads.", "data.easy.", "data.hard.")
"""What may change too as long as there are no heads."""


def make_run_dir(config: RunConfig) -> None:
    """Raises UserError naming `run.dir` when it cannot be made or written to."""
    if RAY_PACKAGES in config.run_dir.resolve().parts:
        log.warning(
            "run.dir: %s lies in the copy of the working directory that Ray removes with the job's session, and the run with "
            "it; name an absolute path on a disk that stays",
            config.run_dir.resolve(),
        )
    try:
        config.run_dir.mkdir(parents=True, exist_ok=True)
        (config.run_dir / run_files.LOCK_FILE).open("a").close()
    except OSError as error:
        raise UserError(
            f"run.dir: expected a directory that can be written to, found {config.run_dir} ({error.strerror})"
        ) from error


def claim_run_dir(config: RunConfig) -> None:
    """Write `config.yaml`, or check that the one that is there is the same where it matters; clear up after a run that
    was killed here."""
    path = config.run_dir / "config.yaml"
    if path.is_file():
        there, here = as_flat_dict(load_config(path, [])), as_flat_dict(config)
        free = FREE_SETTINGS + (() if (config.run_dir / "heads" / HEADS_FILE).is_file() else HEADS_SETTINGS)
        free += () if config.run.deterministic else PLACEMENT_SETTINGS
        old_steps = int(there["rl.num_steps"])
        grows = config.rl.num_steps > old_steps
        free += ("rl.num_steps",) if grows else ()
        differing = [
            f"{key}: {path} has {there.get(key)!r}, this run has {value!r}"
            for key, value in here.items()
            if there.get(key) != value and not key.startswith(free)
        ]
        if differing:
            hint = "choose another run.name, or remove the directory to start over"
            raise ConfigError([*differing, f"the run directory belongs to another configuration: {hint}"])
        if grows:
            set_results_aside(config.run_dir, old_steps)
    files.remove_temporaries(config.run_dir)
    run_files.drop_cut_line(config.run_dir / EVENTS_FILE)
    run_files.write_text(path, dump_config(config))


def set_results_aside(run_dir: Path, step: int) -> None:
    """What was made of the policy of an earlier end of RL gets a name of its own, since RL goes on."""
    for name in ("heads", "evaluation", "export"):
        directory, aside = run_dir / name, run_dir / f"{name}_at_step_{step}"
        if directory.is_dir() and not aside.exists():
            directory.rename(aside)
            log.info("%s: now %s, RL goes on", directory, aside.name)
