"""Adversarial answers through the reward actor's real scoring processes: none hangs a group, none scores as correct
unless it is, and nothing grows."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from actors.reward import RewardActor
from actors.scoring_process import START_TIMEOUT_S
from actors.types import Prompt, Task
from configs.schema.run import RewardSection
from rewards.base import Outcome
from tests.actors.adversarial_answers import REFERENCE, SURELY_RIGHT, Answer, answers, corpus, mutations
from tests.actors.test_reward import make_completion
from tests.fakes import make_request

DEADLINE_S = 1.0
GROUP_SIZE = 8
TASK = Task(task_id="t/1", messages=(), reference_answer=REFERENCE, source="test")
PROMPT = Prompt(task_id="t/1", token_ids=np.arange(3, dtype=np.int32), budget_tokens=100, start=2)
REQUEST = replace(make_request(PROMPT), task=TASK)


@pytest.fixture(scope="module")
def actor():
    actor = RewardActor(RewardSection(deadline_s=DEADLINE_S))
    yield actor
    actor.close()


def resident_mib(pid: int | str) -> float:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def score(actor: RewardActor, group: list[Answer]) -> list[Outcome]:
    """Outcomes of one group, once the rules that hold for all groups were checked."""
    started_s = time.monotonic()
    rollouts = actor.score_group(REQUEST, [make_completion(answer.text) for answer in group])
    elapsed_s = time.monotonic() - started_s
    # A busy machine needs time to start a process in place of one that was killed.
    assert elapsed_s < len(group) * (DEADLINE_S + START_TIMEOUT_S)
    outcomes = [rollout.reward.outcome for rollout in rollouts]
    for answer, rollout in zip(group, rollouts, strict=True):
        if rollout.reward.outcome == Outcome.CORRECT:
            assert answer.may_be_correct, f"scored as correct: {answer.text[:300]!r}"
        else:
            assert rollout.reward.value == 0
    return outcomes


def score_all(actor: RewardActor, all_answers: list[Answer]) -> list[Outcome]:
    groups = [all_answers[place : place + GROUP_SIZE] for place in range(0, len(all_answers), GROUP_SIZE)]
    return [outcome for group in groups for outcome in score(actor, group)]


@pytest.mark.timeout(900)
def test_no_line_of_the_corpus_hangs_crashes_or_fools_scoring(actor):
    lines = corpus()
    outcomes = dict(zip([answer.text for answer in lines], score_all(actor, lines), strict=True))
    wrong = {text: outcomes[text] for text in SURELY_RIGHT if outcomes[text] != Outcome.CORRECT}
    # A starved machine may time a right answer out; none is wrong.
    assert set(wrong.values()) <= {Outcome.TIMEOUT}
    assert resident_mib(actor.ping()) < 1000


@given(st.lists(answers(), min_size=GROUP_SIZE, max_size=GROUP_SIZE))
@settings(
    max_examples=25,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@pytest.mark.timeout(900)
def test_generated_answers_do_not_hang_crash_or_fool_scoring(actor, group):
    score(actor, group)


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_ten_thousand_adversarial_answers_leave_scoring_as_it_was(actor):
    before_mib, counts = 0.0, dict.fromkeys(Outcome, 0)
    generated: list[Answer] = []

    @given(answers())
    @settings(
        max_examples=6_000,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def collect(answer):
        generated.append(answer)

    collect()
    everything = [*corpus(), *generated, *mutations(seed=1, count=10_000)]
    everything = everything[: max(10_000, len(generated) + len(corpus()) + 4_000)]
    assert len(everything) >= 10_000
    for place in range(0, len(everything), GROUP_SIZE):
        for outcome in score(actor, everything[place : place + GROUP_SIZE]):
            counts[outcome] += 1
        if place % 1000 == 0:
            print(place, "of", len(everything), flush=True)
        if place == 2_000:
            before_mib = resident_mib("self")
        assert resident_mib(actor.ping()) < 1000
    print({str(outcome): count for outcome, count in counts.items()}, f"{resident_mib('self') - before_mib:+.0f} MiB")
    assert resident_mib("self") - before_mib < 100
    assert counts[Outcome.CRASHED] < len(everything) / 100
    assert score(actor, [Answer(SURELY_RIGHT[0], may_be_correct=True)]) == [Outcome.CORRECT]
