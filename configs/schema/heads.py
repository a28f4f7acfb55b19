"""Settings of the switcher and verifier heads, and of parallel test-time scaling."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class HeadsSection:
    """The switcher and the verifier, trained after RL on what the run's policy does with training tasks."""

    num_tasks: int = 1024
    """Training tasks that are completed in both modes; 0 leaves the heads out."""
    samples_per_task: int = 8
    """Completions per task and mode."""
    temperature: float = 0.7
    """Sampling temperature of those completions."""
    validation_frac: float = 0.2
    """Share of the tasks that heads are judged on, and never trained on."""
    verification_prompt: str = "\n\nIs this solution correct?"
    """Appended to a completion; the verifier reads the state of its last token."""
    switcher_labels: Literal["benefit", "sources"] = "benefit"
    """benefit: reasoning is right more often than base on this prompt; sources: the prompt is one of `data.hard`,
    not of `data.easy`."""
    num_source_tasks: int = 1024
    """Prompts of each of the two sources, with `switcher_labels=sources`."""
    threshold: Literal["accuracy", "share"] = "accuracy"
    """What the switcher's threshold aims at, by scores of tasks that it was not trained on (cross-fitted):
    `max_accuracy_loss` or `reasoning_share`."""
    max_accuracy_loss: float = 0.01
    """Accuracy that may be lost against reasoning on every prompt."""
    reasoning_share: float = 0.5
    """Share of prompts that reason."""
    chunk_tokens: int = 128
    """Prompt states are averaged over chunks of so many tokens, and the chunks by an EMA …"""
    ema_alpha: float = 0.5
    """… in which the newest chunk has this weight."""
    switcher_dropout: float = 0.2
    """Dropout of the switcher's hidden layer, in training."""
    switcher_noise: float = 0.5
    """Standard deviation of the noise on standardised features in training."""
    learning_rate: float = 1e-3
    """Learning rate of both heads (AdamW)."""
    weight_decay: float = 1e-2
    """Weight decay of both heads."""
    num_epochs: int = 30
    """The epoch with the lowest validation loss is kept."""


@dataclass(frozen=True, kw_only=True)
class ScalingSection:
    """Parallel test-time scaling on held-out tasks: N completions, one answer."""

    num_tasks: int = 256
    """The first so many evaluation tasks; 0 leaves it out."""
    samples_per_task: int = 16
    """Completions per task and mode; every N draws from them."""
    sizes: tuple[int, ...] = (1, 2, 4, 6, 8)
    """The values of N."""
    num_draws: int = 20
    """Draws of N out of the samples; results are their mean and standard deviation."""
    temperature: float = 0.7
    """Completions are sampled at it."""
    top_p: float = 1.0
    """Nucleus that completions are sampled from; 1 is everything."""
    same_answer: str = "math"
    """Whether two answers are one vote: `math` (equal in value), `text` (equal to the letter), or a function of your own,
    `package.module:function`."""
    same_answer_args: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of that function."""
    caps_tokens: tuple[int, ...] = ()
    """Hard caps to evaluate at as well, on the same completions."""
    num_timed_tasks: int = 4
    """Tasks that are completed one at a time at every N, for its wall time; 0 leaves the times out."""
