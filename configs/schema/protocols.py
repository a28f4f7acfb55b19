"""Settings of published benchmarks; part of `configs.schema`."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ProtocolsSection:
    """Published benchmarks to evaluate on, besides the run's own held-out tasks."""

    names: tuple[str, ...] = ()
    """e.g. gsm8k, math500, aime24; `configs/evaluation/protocols.yaml` lists them with their settings."""
    file: str = ""
    """YAML of the same shape: protocols of your own, or settings that differ from the shipped ones."""
    data_dir: str = ""
    """Directory with the protocols' files; one that is not there comes from the hub. Empty: all do."""
    num_tasks: int = 0
    """Of each benchmark so many, drawn by the seed; 0 is all."""
    num_runs: int = 0
    """Completions per task; 0 is what the protocol says."""
    budgets_tokens: tuple[int, ...] = ()
    """One is named in each prompt, as in training; empty: prompts name none, as published evaluations have it."""
