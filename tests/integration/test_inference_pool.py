"""Work handed to inference and reward actors on a real Ray, with hand-written actors that die."""

import os
import signal
import time

import pytest
import ray

from actors.engine import Sampling
from actors.scaling import group_answers
from actors.types import Inference, Rollout
from orchestrator.cluster.inference_pool import InferencePool, InferenceRequest
from orchestrator.evaluation.evaluate import make_record
from rewards.base import Outcome, RewardResult
from tests.fakes import make_actor_pool, make_completion, make_prompt, make_task

pytestmark = pytest.mark.integration


class Engine:
    """`fuse`: dies on this call, counted from 1; `lost`: the answer of this call is lost."""

    def __init__(self, fuse=0, error=None, lost=0):
        self.fuse, self.error, self.lost, self.calls, self.served = fuse, error, lost, 0, []

    def ping(self):
        pass

    def infer(self, prompt, n, sampling, version, mode, reads, cap, drafts):
        self.calls += 1
        if self.calls == self.fuse:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.calls == self.lost:
            raise ray.exceptions.ObjectLostError("00" * 28, None, "")
        if self.error:
            raise ValueError(self.error)
        self.served.append(prompt.task_id)
        time.sleep(0.01)
        return Inference(
            mode=mode,
            completions=tuple(make_completion(version=version) for _ in range(n)),
            switcher_score=0.5,
            verifier_scores=None,
            prompt_state=None,
            completion_states=None,
            prefill_s=0.0,
            switch_s=0.0,
            generate_s=0.0,
            verify_s=0.0,
        )

    def list_served(self):
        return self.served


class Scorer:
    def __init__(self, fuse=0):
        self.fuse, self.calls, self.scored = fuse, 0, []

    def ping(self):
        pass

    def score_group(self, task, prompt, completions):
        self.calls += 1
        if self.calls == self.fuse:
            os.kill(os.getpid(), signal.SIGKILL)
        self.scored.append(task.task_id)
        reward = RewardResult(value=1.0, outcome=Outcome.CORRECT, answer="2")
        return tuple(Rollout(prompt=prompt, completion=completion, reward=reward) for completion in completions)

    def group_answers(self, answers):
        return [group_answers(one, lambda texts, other: [text == other for text in texts]) for one in answers]

    def list_scored(self):
        return self.scored


def make_pool(*engines, scorers=({},)):
    """Engines and reward actors of these settings; whoever takes the place of one has none."""

    def make(cls, settings):
        left = dict(enumerate(settings))
        return make_actor_pool(
            cls.__name__, lambda index: ray.remote(cls).options(num_cpus=0.1).remote(**left.pop(index, {})), len(left)
        )

    return InferencePool(make(Engine, engines), make(Scorer, scorers), timeout_s=30)


def list_scored(pool):
    handles = pool.actors["reward"].handles
    return sorted(task_id for handle in handles for task_id in ray.get(handle.list_scored.remote()))


def make_requests(num, n=3):
    return [
        InferenceRequest(
            task=make_task(index),
            prompt=make_prompt(index),
            n=n,
            sampling=Sampling(temperature=1.0, max_tokens=4),
            version=7,
            mode="reasoning",
        )
        for index in range(num)
    ]


def task_ids(num):
    return [f"fake/{index}" for index in range(num)]


def test_every_task_comes_back_once_in_order(ray_cluster):
    pool = make_pool({}, {})
    records = [make_record(inferred) for inferred in pool.run(make_requests(20))]
    assert [record.task_id for record in records] == task_ids(20)
    assert {(record.n, record.mode, len(record.correct)) for record in records} == {(3, "reasoning", 3)}
    assert list_scored(pool) == sorted(task_ids(20))


@pytest.mark.parametrize("others", [[], [{}]])
def test_an_engine_killed_in_the_middle_costs_no_task_and_none_is_scored_twice(ray_cluster, others):
    pool = make_pool({"fuse": 6}, *others)
    finished = pool.run(make_requests(30))
    assert [inferred.request.task.task_id for inferred in finished] == task_ids(30)
    assert [rollout.prompt.task_id for one in finished for rollout in one.rollouts[:1]] == task_ids(30)
    assert list_scored(pool) == sorted(task_ids(30))


def test_an_answer_that_went_with_its_node_is_made_again_and_the_actor_stays(ray_cluster):
    pool = make_pool({"lost": 2})
    assert [inferred.request.task.task_id for inferred in pool.run(make_requests(4))] == task_ids(4)
    assert list_scored(pool) == sorted(task_ids(4))
    (engine,) = pool.actors["inference"].handles
    assert sorted(ray.get(engine.list_served.remote())) == sorted(task_ids(4)), "the first actor served them all"


def test_a_lost_reward_actor_costs_no_task(ray_cluster):
    pool = make_pool({}, scorers=({"fuse": 3}, {}))
    assert [inferred.request.task.task_id for inferred in pool.run(make_requests(12))] == task_ids(12)


def test_what_an_engine_raises_is_raised_here(ray_cluster):
    pool = make_pool({"error": "no such prompt"}, {})
    with pytest.raises(RuntimeError, match=r"request \d failed: .*no such prompt"):
        pool.run(make_requests(4))


def test_requests_without_completions_are_not_scored(ray_cluster):
    pool = make_pool({})
    assert [inferred.rollouts for inferred in pool.run(make_requests(3, n=0))] == [(), (), ()]
    assert list_scored(pool) == []


def test_answers_are_grouped_task_by_task_over_all_reward_actors(ray_cluster):
    pool = make_pool({}, scorers=({}, {}))
    answers = [[str(task), "x", str(task), ""] for task in range(200)]
    assert pool.group_answers(answers) == [(0, 1, 0, -1)] * 200
