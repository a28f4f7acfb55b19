"""The driver's work for a group is the same however many are in flight: lines of Python are counted, not time."""

import itertools
import pickle
import sys
import types

import pytest

from actors.types import Sampling
from configs.schema.run import RlSection
from orchestrator.cluster import actor_pool, dispatcher
from orchestrator.cluster.actor_pool import ActorPool
from orchestrator.cluster.dispatcher import Dispatcher
from orchestrator.record.checkpoint import TaskCursor
from orchestrator.rl.rollout_pool import RolloutPool
from tests.fakes import make_group, make_inference, make_prompt, make_ref, make_task

AT_ONCE = 8
"""Calls that end between two looks."""
COUNTED = ("dispatcher.py", "rollout_pool.py", "actor_pool.py")


class FakeRay:
    """References are numbers; those of actors' calls end a few at a time, the oldest first."""

    exceptions = actor_pool.ray.exceptions

    def __init__(self):
        self.numbers, self.results, self.ended = itertools.count(), {}, set()

    def put(self, result, has_ended=False):
        reference = next(self.numbers)
        self.results[reference] = result
        if has_ended:
            self.ended.add(reference)
        return reference

    def wait(self, references, num_returns=1, timeout=None, fetch_local=True):
        if num_returns > 1:
            self.ended.update(list(references)[:AT_ONCE])
            return [reference for reference in references[: 4 * AT_ONCE] if reference in self.ended], []
        return [reference for reference in references[:1] if reference in self.ended], []

    def get(self, reference):
        if isinstance(reference, list):
            return [self.get(one) for one in reference]
        self.ended.discard(reference)
        return self.results.pop(reference)


class FakeActor:
    """An engine and a reward actor in one."""

    def __init__(self, ray):
        self.ray = ray
        self.infer = types.SimpleNamespace(
            options=lambda num_returns: types.SimpleNamespace(
                remote=lambda request, drafts: (ray.put(None), ray.put(make_inference()))
            )
        )
        self.score_group = types.SimpleNamespace(remote=self.score)

    def score(self, request, completions):
        return self.ray.put(make_group([0, 1], version=pickle.loads(pickle.dumps(request)).version).rollouts)


@pytest.fixture
def lines_of_a_step(monkeypatch):
    """Lines of Python that the driver runs for `num_groups` groups on `num_engines` engines."""

    def count(num_groups, num_engines):
        ray = FakeRay()
        monkeypatch.setattr(dispatcher, "ray", ray)
        monkeypatch.setattr(actor_pool, "ray", ray)
        monkeypatch.setattr(dispatcher, "LOOK_PAUSE", 0.0)
        make = {"make": lambda index: FakeActor(ray), "start": lambda actor: ray.put(True, has_ended=True)}
        pools = [ActorPool(role, num_engines, **make, start_timeout_s=9, max_losses=0) for role in ("engine", "scorer")]
        for pool in pools:
            pool.poll()
        pool = RolloutPool(
            dispatcher=Dispatcher(*pools, timeout_s=60),
            load_adapter=lambda ref, packed: None,
            prompt_at=lambda index: (make_task(), make_prompt()),
            cursor=TaskCursor(next_index=0, unfinished=()),
            sampling=Sampling(temperature=1.0, max_tokens=4),
            config=RlSection(groups_per_step=num_groups, group_size=2, max_staleness=0),
        )
        num_lines = 0

        def trace(frame, event, _):
            nonlocal num_lines
            if not frame.f_code.co_filename.endswith(COUNTED):
                return None
            num_lines += event == "line"
            return trace

        sys.settrace(trace)
        try:
            pool.use_adapter(make_ref(0), None)
            taken = pool.take(num_groups)
        finally:
            sys.settrace(None)
        assert len(taken) == num_groups
        return num_lines

    return count


def test_work_grows_with_the_number_of_groups_and_no_faster(lines_of_a_step):
    few, many = lines_of_a_step(64, 16), lines_of_a_step(1024, 16)
    assert many < 1.3 * (1024 / 64) * few


def test_work_does_not_grow_with_the_number_of_engines(lines_of_a_step):
    few, many = lines_of_a_step(256, 4), lines_of_a_step(256, 256)
    assert many < 1.5 * few
