"""Progress of a stage: a bar on a terminal, one log line per step elsewhere."""

import logging
import sys
from types import TracebackType

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

log = logging.getLogger(__name__)

SHOWN = {
    "train/loss": ("loss", "{:.3f}"),
    "reward/mean": ("reward", "{:.2f}"),
    "reward/accuracy": ("accuracy", "{:.2f}"),
    "rollout/completion_tokens_mean": ("tokens", "{:.0f}"),
    "rollout/tokens_per_s": ("tok/s", "{:.0f}"),
    "time/step_s": ("step", "{:.1f} s"),
}
"""Metric → its name and form on the line."""


class Progress:
    """Context manager around a stage's loop."""

    def __init__(self, name: str, first_step: int, num_steps: int):
        self._name, self._first, self._num_steps = name, first_step, num_steps
        self._bar = tqdm(
            total=num_steps, initial=first_step, desc=name, unit="step", disable=not sys.stderr.isatty(), leave=True
        )
        self._redirect = logging_redirect_tqdm()

    def __enter__(self) -> "Progress":
        self._redirect.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        self._redirect.__exit__(kind, error, trace)

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """Show one finished step."""
        shown = {name: form.format(metrics[key]) for key, (name, form) in SHOWN.items() if key in metrics}
        if self._bar.disable:
            parts = ", ".join(f"{name} {value}" for name, value in shown.items())
            log.info("%s step %d/%d: %s", self._name, step, self._num_steps, parts)
            return
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(step - self._bar.n)
