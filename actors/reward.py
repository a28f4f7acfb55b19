"""Scores completions: is the answer right, and what is it worth at its length?"""

from collections.abc import Sequence
from typing import Any

from actors.judges import LABEL, MATH, SAME_VALUE, Judge
from actors.scaling import group_answers
from actors.scoring_process import Scorer
from actors.types import Completion, Prompt, Request, Rollout, Sample, Task
from configs.protocols import load_protocols
from configs.schema.run import RewardSection, RunConfig
from rewards.base import AnswerVerdict, BadReference, Outcome, Reference, RewardResult
from rewards.length.registry import LengthInputs, LengthState, score_group
from rewards.length.state import NO_MEMORY


class RewardActor:
    """Owns one killable scoring process (`Scorer`); one call at a time."""

    def __init__(self, config: RewardSection, judges: Sequence[Judge] = (MATH, LABEL, SAME_VALUE)):
        """Returns once the process can score; `judges` are all verifiers of the run's tasks, and at most one that compares
        answers.

        Raises RuntimeError with the process's own words when it does not start, UserError for a function that cannot be
        imported on this node.
        """
        self._config = config
        self._same = next((judge for judge in judges if judge.key == SAME_VALUE.key), SAME_VALUE)
        self._scorer = Scorer(config.deadline_s, judges)

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
            texts = [completion.text for completion in completions]
            verdicts = judge_answers(self._scorer, texts, task, judge_of(task, self._config))
        except BadReference as error:
            raise BadReference(f"task {task.task_id}: {error}") from error
        is_correct = [verdict.outcome == Outcome.CORRECT for verdict in verdicts]
        state = request.length_state
        inputs = length_inputs(prompt, completions, is_correct, self._config.span, request.step, state)
        scores = score_group(inputs, self._config)
        rewards = [
            RewardResult(value=score.value, outcome=verdict.outcome, answer=verdict.answer, breakdown=score.breakdown)
            for verdict, score in zip(verdicts, scores, strict=True)
        ]
        return summarise(completions, rewards, request.returns)

    def group_answers(self, answers_of_tasks: Sequence[Sequence[str]]) -> list[tuple[int, ...]]:
        """Classes of answers that are one vote (`scaling.same_answer`) among those of each task, as
        `actors.scaling.group_answers` has them.

        Answers are texts as `score_group` extracted them, empty where there was none. A comparison that overruns
        `reward.deadline_s`, ends its process or cannot be made counts as not equal.
        """
        return [group_answers(answers, self._find_equal) for answers in answers_of_tasks]

    def _find_equal(self, texts: list[str], representative: str) -> list[bool]:
        return self._scorer.find_equal(texts, representative, self._same)

    def close(self) -> None:
        """End the scoring process."""
        self._scorer.close()


def judge_of(task: Task, config: RewardSection) -> Judge:
    """The verifier of a task: its source's own, or the run's; `math` leaves tasks with labels to `label`."""
    name, args = (task.verifier, task.verifier_args) if task.verifier else (config.verifier, config.verifier_args)
    return LABEL if task.labels and name == MATH.name else Judge(name=name, args=args)


def judges_of(config: RunConfig) -> tuple[Judge, ...]:
    """All functions that the scoring processes of a run may be asked to call, each once."""
    sources = [*config.data.train, *config.data.evaluation, config.data.easy, config.data.hard]
    sources += [protocol.source for protocol in load_protocols(config.protocols)]
    resolved = [config.resolved(source) for source in sources]
    scaling = config.scaling
    judges = [
        Judge(key=SAME_VALUE.key, name=scaling.same_answer, args=scaling.same_answer_args),
        LABEL,
        Judge(name=config.reward.verifier, args=config.reward.verifier_args),
        *(Judge(name=source.verifier, args=source.verifier_args) for source in resolved),
    ]
    return tuple(judge for place, judge in enumerate(judges) if judge not in judges[:place])


def judge_answers(scorer: Scorer, texts: Sequence[str], task: Task, judge: Judge) -> list[AnswerVerdict]:
    """One verdict per completion. Raises BadReference for a task that no completion can be judged against."""
    return scorer.verify(texts, reference_of(task), judge)


def reference_of(task: Task) -> Reference:
    """What a verifier is told of a task."""
    question = next((turn["content"] for turn in reversed(task.messages) if turn["role"] == "user"), "")
    return Reference(answer=task.reference_answer, question=question, labels=task.labels, fields=task.fields)


def length_inputs(
    prompt: Prompt,
    completions: Sequence[Completion | Rollout],
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


def inputs_of_rollouts(prompt: Prompt, rollouts: Sequence[Rollout], span: str, step: int) -> LengthInputs:
    """The same of a group that has been scored, for what is remembered of it."""
    is_correct = [rollout.reward.outcome == Outcome.CORRECT for rollout in rollouts]
    return length_inputs(prompt, rollouts, is_correct, span, step)


def summarise(
    completions: Sequence[Completion], rewards: Sequence[RewardResult], returns: str
) -> tuple[Rollout, ...] | tuple[Sample, ...]:
    """What a request asks for of its scored completions, see `Request.returns`."""
    counts: list[dict[str, Any]] = [
        {
            "num_tokens": completion.num_tokens,
            "num_forced_tokens": int(completion.forced.sum()),
            "num_thinking_tokens": completion.num_thinking_tokens,
            "finish_reason": completion.finish_reason,
            "policy_version": completion.policy_version,
            "adapter_sha256": completion.adapter_sha256,
            "reward": reward,
        }
        for completion, reward in zip(completions, rewards, strict=True)
    ]
    if returns == "rollouts":
        return tuple(Rollout(**one) for one in counts)
    return tuple(Sample(**one, text=completion.text) for one, completion in zip(counts, completions, strict=True))
