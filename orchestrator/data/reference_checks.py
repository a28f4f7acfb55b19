"""How many reference answers no completion could meet: prose, missing values, mathematics that cannot be read."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from actors.judges import MATH, Judge
from actors.scoring_process import Scorer
from actors.types import Task
from configs.errors import UserError
from rewards.base import Outcome, Reference

log = logging.getLogger(__name__)

_SIMPLE = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?|[+-]?[0-9]{1,3}(?:,[0-9]{3})+")
"""What needs no look."""
DEADLINE_S = 5.0
JUDGE = Judge(name="rewards.references:judge_reference")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unverifiable:
    task_id: str
    """Source and row."""
    reference_answer: str
    problem: str

    @property
    def text(self) -> str:
        return f"{self.task_id}: {self.problem}"


@lru_cache(maxsize=8)
def find_unverifiable(tasks: tuple[tuple[str, str], ...]) -> tuple[Unverifiable, ...]:
    """The pairs of task id and reference answer that no completion could meet. References are read in a process that can be
    killed, each text once: they come from files that nobody vouches for."""
    texts = list(dict.fromkeys(reference for _, reference in tasks if not _SIMPLE.fullmatch(reference)))
    if not texts:
        return ()
    scorer = Scorer(DEADLINE_S, [JUDGE])
    try:
        verdicts = scorer.verify(texts, Reference(answer=""), JUDGE)
    finally:
        scorer.close()
    problems = {
        text: verdict.answer or f"reference answer {text!r:.100}: reading it ended in {verdict.outcome}"
        for text, verdict in zip(texts, verdicts, strict=True)
        if verdict.outcome != Outcome.CORRECT
    }
    return tuple(
        Unverifiable(task_id=task_id, reference_answer=reference, problem=problems[reference])
        for task_id, reference in tasks
        if reference in problems
    )


def check_references(tasks: Sequence[Task]) -> tuple[Unverifiable, ...]:
    """Warns of references that `math` cannot verify; raises UserError when it can verify none. Labels were checked as they were
    read, and what other verifiers need is for them to say."""
    judged = tuple(
        (task.task_id, task.reference_answer) for task in tasks if not task.labels and task.verifier in ("", MATH.name)
    )
    found = find_unverifiable(judged)
    if found and len(found) == len(judged):
        raise UserError(
            f"{tasks[0].source}: expected reference answers that can be verified, found none; {found[0].text}"
        )
    if found:
        log.warning(
            "%s: %d of %d reference answers cannot be verified, no completion of theirs can be right; the first: %s",
            *(tasks[0].source, len(found), len(judged), found[0].text),
        )
    return found
