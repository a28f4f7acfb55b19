from collections import Counter
from dataclasses import replace

import pytest

from actors.types import Sampling
from configs.schema.run import RlSection
from orchestrator.record.checkpoint import TaskCursor
from orchestrator.rl.rollout_pool import RolloutPool, check_stamps, may_take
from tests.fakes import FakeDispatcher, make_group, make_prompt, make_ref, make_task


def make_pool(dispatcher, cursor=None, seed_of=None, show=lambda depths: None, **settings):
    config = replace(RlSection(groups_per_step=2, group_size=2), **settings)
    return RolloutPool(
        dispatcher=dispatcher,
        load_adapter=lambda ref, packed: None,
        prompt_at=lambda index: (make_task(index), make_prompt(index)),
        cursor=cursor or TaskCursor(),
        sampling=Sampling(temperature=1.0, max_tokens=4),
        config=config,
        seed_of=seed_of,
        show=show,
    )


def test_on_policy_training_only_sees_the_current_version():
    dispatcher = FakeDispatcher()
    pool = make_pool(dispatcher)
    for version in range(4):
        pool.use_adapter(make_ref(version), None)
        groups = pool.take(2)
        assert {group.policy_version for group in groups} == {version}
    assert dispatcher.submitted == [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3), (7, 3)]


@pytest.mark.parametrize("finish", [min, max], ids=["oldest-first", "newest-first"])
@pytest.mark.parametrize("max_staleness", [1, 2, 3])
def test_staleness_stays_within_the_bound_whatever_the_order_of_finishing(max_staleness, finish):
    pool = make_pool(FakeDispatcher(finish=finish), max_staleness=max_staleness)
    trained = Counter()
    for version in range(20):
        pool.use_adapter(make_ref(version), None)
        for group in pool.take(2):
            assert 0 <= version - group.policy_version <= max_staleness
            trained[group.group_id] += 1
    assert set(trained.values()) == {1}


def test_asynchronous_training_keeps_slots_for_every_step_of_staleness():
    dispatcher = FakeDispatcher()
    pool = make_pool(dispatcher, max_staleness=2)
    pool.use_adapter(make_ref(0), None)
    assert len(dispatcher.requests) == 6


def test_constant_groups_are_dropped_counted_and_replaced():
    dispatcher = FakeDispatcher(rewards_of=lambda group_id: (1.0, 1.0) if group_id == 0 else (0.0, 1.0))
    pool = make_pool(dispatcher)
    pool.use_adapter(make_ref(0), None)
    assert [group.group_id for group in pool.take(2)] == [1, 2]
    dropped = pool.pop_dropped()
    assert [(drop.group_id, drop.reason) for drop in dropped] == [(0, "constant")]
    assert pool.pop_dropped() == []


def test_starvation_raises_with_the_reason():
    pool = make_pool(FakeDispatcher(rewards_of=lambda group_id: (0.0, 0.0)), max_consecutive_drops=5)
    pool.use_adapter(make_ref(0), None)
    with pytest.raises(RuntimeError, match=r"starved: 5 groups in a row had equal rewards.*wrong"):
        pool.take(2)


def test_taking_without_an_adapter_raises():
    with pytest.raises(RuntimeError, match="no adapter published"):
        make_pool(FakeDispatcher()).take(2)


def test_a_resumed_pool_makes_unfinished_groups_again_and_skips_none():
    first = make_pool(FakeDispatcher(finish=max), max_staleness=1)
    first.use_adapter(make_ref(0), None)
    trained = [group.group_id for group in first.take(2)]
    cursor = first.cursor
    assert sorted([*trained, *cursor.unfinished]) == list(range(cursor.next_index))
    second = make_pool(FakeDispatcher(), cursor=cursor, max_staleness=1)
    second.use_adapter(make_ref(1), None)
    trained += [group.group_id for group in second.take(2)]
    assert sorted(trained) == [0, 1, 2, 3]


def test_a_completion_by_another_version_is_refused():
    with pytest.raises(RuntimeError, match="expected completions by adapter version 3"):
        check_stamps(make_group([0, 1], version=2), make_ref(3))


def test_a_completion_with_another_hash_is_refused():
    with pytest.raises(RuntimeError, match="got version 3 \\(bbbbbbbbbbbb\\)"):
        check_stamps(make_group([0, 1], version=3, sha256="b" * 64), make_ref(3))


def test_a_step_waits_for_the_pending_group_that_expires_now():
    settings = {"num_groups": 2, "policy_version": 5, "max_staleness": 1}
    assert not may_take({4: 1, 5: 2}, {4: 1}, **settings)
    assert may_take({4: 1, 5: 2}, {5: 1}, **settings)
    assert not may_take({5: 1}, {5: 1}, **settings)


def test_a_step_waits_when_more_groups_would_expire_than_later_steps_can_take():
    # Learner at 2, staleness 2: three groups of version 1 left expire after the next step, which takes two.
    settings = {"num_groups": 2, "policy_version": 2, "max_staleness": 2}
    assert not may_take({2: 2}, {1: 3}, **settings)
    assert may_take({2: 2}, {1: 2, 2: 1}, **settings)


@pytest.mark.parametrize("finish", [min, max], ids=["oldest-first", "newest-first"])
def test_what_a_step_trains_on_does_not_depend_on_the_order_of_finishing(finish):
    """Every third group is constant; the step takes the first two others, in the order of the stream."""
    dispatcher = FakeDispatcher(
        rewards_of=lambda group_id: (1.0, 1.0) if group_id % 3 == 0 else (0.0, 1.0), finish=finish
    )
    pool = make_pool(dispatcher)
    taken = []
    for version in range(3):
        pool.use_adapter(make_ref(version), None)
        groups = [group.group_id for group in pool.take(2)]
        taken.append((groups, [drop.group_id for drop in pool.pop_dropped()]))
    assert taken == [([1, 2], [0]), ([4, 5], [3]), ([7, 8], [6])]


def test_seeds_follow_from_the_prompt_and_the_version_and_stay_when_a_group_is_made_again():
    dispatcher = FakeDispatcher()
    pool = make_pool(dispatcher, seed_of=lambda index, version: 100 * index + version)
    pool.use_adapter(make_ref(0), None)
    assert [request.sampling.seed for request in dispatcher.requests] == [0, 100]
    again = FakeDispatcher()
    make_pool(again, cursor=pool.cursor, seed_of=lambda index, version: 100 * index + version).use_adapter(
        make_ref(0), None
    )
    assert [request.sampling.seed for request in again.requests] == [0, 100]


def test_without_seeds_the_engine_samples_as_it_comes():
    dispatcher = FakeDispatcher()
    make_pool(dispatcher).use_adapter(make_ref(0), None)
    assert {request.sampling.seed for request in dispatcher.requests} == {None}


def test_queue_depths_are_shown_while_a_step_waits_and_say_where_the_groups_are():
    shown = []
    pool = make_pool(FakeDispatcher(), max_staleness=1, show=shown.append)
    pool.use_adapter(make_ref(0), None)
    pool.take(2)
    assert shown[0] == {
        "rollout/queue_generating": 4.0,
        "rollout/queue_scoring": 0.0,
        "rollout/queue_ready": 0.0,
        "rollout/slots": 4.0,
    }
    assert [depths["rollout/queue_ready"] for depths in shown] == [0.0, 1.0, 2.0]
    assert pool.describe_waiting() == "0 of 4 groups ready, 0 dropped; 2 groups in generate"
