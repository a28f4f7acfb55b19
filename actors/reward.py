"""Scores completions: is the answer right, and what is it worth at its length?"""

from collections.abc import Sequence

from actors.scaling import group_answers
from actors.scoring_process import ANSWER_VERIFIER, Scorer
from actors.types import Completion, Prompt, Request, Rollout, Sample, Task
from configs.schema.run import RewardSection
from rewards.base import AnswerVerdict, Outcome, RewardResult
from rewards.length.registry import LengthInputs, LengthState, score_group
from rewards.length.state import NO_MEMORY


class RewardActor:
    """Owns one killable scoring process (`Scorer`); one call at a time."""

    def __init__(self, config: RewardSection, verifier: str = ANSWER_VERIFIER):
        """Returns once the process can score; `verifier` is what `Scorer` takes.

        Raises RuntimeError with the process's own words when it does not start.
        """
        self._config = config
        self._scorer = Scorer(config.deadline_s, verifier)

    def ping(self) -> int:
        """Process id of a scoring process that is ready."""
        return self._scorer.ensure_ready()

    def heartbeat(self) -> None:
        """Answers whatever the scoring process does."""

    def score_group(
        self, request: Request, completions: Sequence[Completion]
    ) -> tuple[Rollout, ...] | tuple[Sample, ...]:
        """The completions of one request, scored, in their order; as rollouts or as samples, whichever it asks for.

        A completion whose verification overruns `reward.deadline_s` gets TIMEOUT, one that ends its process
        CRASHED; both earn what a wrong answer earns. Raises ValueError for a prompt of another task and for a
        reference answer that cannot be parsed.
        """
        task, prompt = request.task, request.prompt
        if prompt.task_id != task.task_id:
            raise ValueError(f"expected a prompt of task {task.task_id}, got one of {prompt.task_id}")
        try:
            verdicts = judge_answers(self._scorer, [completion.text for completion in completions], task)
        except ValueError as error:
            raise ValueError(f"task {task.task_id}: {error}") from error
        is_correct = [verdict.outcome == Outcome.CORRECT for verdict in verdicts]
        state = request.length_state
        inputs = length_inputs(prompt, completions, is_correct, self._config.span, request.step, state)
        scores = score_group(inputs, self._config)
        rollouts = tuple(
            Rollout(
                prompt=prompt,
                completion=completion,
                reward=RewardResult(
                    value=score.value, outcome=verdict.outcome, answer=verdict.answer, breakdown=score.breakdown
                ),
            )
            for completion, verdict, score in zip(completions, verdicts, scores, strict=True)
        )
        return rollouts if request.returns == "rollouts" else tuple(rollout.sample for rollout in rollouts)

    def group_answers(self, answers_of_tasks: Sequence[Sequence[str]]) -> list[tuple[int, ...]]:
        """Classes of mathematical equality among the answers of each task, as `actors.scaling.group_answers` has them.

        Answers are texts as `score_group` extracted them, empty where there was none. A comparison that overruns
        `reward.deadline_s`, ends its process or cannot be made counts as not equal.
        """
        return [group_answers(answers, self._find_equal) for answers in answers_of_tasks]

    def _find_equal(self, texts: list[str], representative: str) -> list[bool]:
        try:
            verdicts = self._scorer.verify([_boxed(text) for text in texts], _boxed(representative))
        except ValueError:
            return [False] * len(texts)  # an answer that cannot stand as a reference equals its own text only
        return [verdict.outcome == Outcome.CORRECT for verdict in verdicts]

    def close(self) -> None:
        """End the scoring process."""
        self._scorer.close()


def judge_answers(scorer: Scorer, texts: Sequence[str], task: Task) -> list[AnswerVerdict]:
    """One verdict per completion. Raises ValueError for a reference answer that is none."""
    return scorer.verify(texts, task.reference_answer, task.labels)


def _boxed(answer: str) -> str:
    """All of it counts as the answer."""
    return f"\\boxed{{{answer}}}"


def length_inputs(
    prompt: Prompt,
    completions: Sequence[Completion],
    is_correct: Sequence[bool],
    span: str,
    step: int = 0,
    state: LengthState = NO_MEMORY,
) -> LengthInputs:
    """What length rewards are told of one group; `span` is `completion` or `thinking`."""
    return LengthInputs(
        num_tokens=tuple(c.num_thinking_tokens if span == "thinking" else c.num_tokens for c in completions),
        correct=tuple(is_correct),
        truncated=tuple(c.finish_reason == "length" for c in completions),
        task_id=prompt.task_id,
        budget_tokens=prompt.budget_tokens,
        step=step,
        state=state,
    )


def inputs_of_rollouts(rollouts: Sequence[Rollout], span: str, step: int) -> LengthInputs:
    """The same of a group that has been scored, for what is remembered of it."""
    is_correct = [rollout.reward.outcome == Outcome.CORRECT for rollout in rollouts]
    return length_inputs(rollouts[0].prompt, [rollout.completion for rollout in rollouts], is_correct, span, step)
