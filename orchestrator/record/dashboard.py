"""A run's metrics on Ray's dashboard, and for the Prometheus that scrapes the cluster.

They have MLflow's names with `_` for `/`; Ray puts `ray_` in front of what a program exports:
`rollout/tokens_per_s` is `ray_terse_rollout_tokens_per_s`, labelled with run and stage.
"""

import re
from collections import Counter

from ray.util.metrics import Gauge

TAGS = ("run", "stage")
ROLES = ("rollout actor", "inference actor", "reward actor", "learner")


class Dashboard:
    """Gauges of one driver, each made when its metric first comes up."""

    def __init__(self) -> None:
        self._gauges: dict[str, Gauge] = {}
        self._lost: Counter[str] = Counter()

    def count_loss(self, role: str, *, run: str) -> None:
        """One more actor of a role (of `ROLES`) that was lost."""
        self._lost[role] += 1
        self.show_losses(run=run)

    def show_losses(self, *, run: str) -> None:
        """How many actors of each role were lost so far: none is a figure too."""
        losses = {"lost/" + role.replace(" ", "_"): float(self._lost[role]) for role in ROLES}
        self.show(losses, run=run, stage="")

    def show(self, metrics: dict[str, float], *, run: str, stage: str) -> None:
        """The newest values; needs a connected Ray driver to reach anybody."""
        for name, value in metrics.items():
            if name not in self._gauges:
                self._gauges[name] = Gauge(exported_name(name), description=name, tag_keys=TAGS)
            self._gauges[name].set(float(value), tags={"run": run, "stage": stage})


def exported_name(metric: str) -> str:
    """`rollout/logprob_gap_mean` → `terse_rollout_logprob_gap_mean`; what Prometheus does not take becomes `_`."""
    return "terse_" + re.sub(r"\W", "_", metric, flags=re.ASCII)
