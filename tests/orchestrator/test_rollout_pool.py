from collections import Counter
from dataclasses import replace

import pytest

from actors.engine import Sampling
from configs.schema import RlSection
from orchestrator.rollout_pool import RolloutPool, TaskCursor, check_stamps, choose_groups
from tests.fakes import FakeDispatcher, make_group, make_prompt, make_ref, make_task


def make_pool(dispatcher, cursor=None, **settings):
    config = replace(RlSection(groups_per_step=2, group_size=2), **settings)
    return RolloutPool(
        dispatcher=dispatcher,
        load_adapter=lambda ref, packed: None,
        prompt_at=lambda index: (make_task(index), make_prompt(index)),
        cursor=cursor or TaskCursor(),
        sampling=Sampling(temperature=1.0, max_tokens=4),
        config=config,
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


def test_choose_waits_for_the_pending_group_that_expires_now():
    settings = {"num_groups": 2, "policy_version": 5, "max_staleness": 1}
    assert choose_groups([5, 4, 5], [4], **settings) is None
    assert choose_groups([5, 4, 5], [5], **settings) == [1, 0]


def test_choose_waits_when_more_groups_would_expire_than_later_steps_can_take():
    # Learner at 2, staleness 2: three groups of version 1 left expire after the next step, which takes two.
    settings = {"num_groups": 2, "policy_version": 2, "max_staleness": 2}
    assert choose_groups([2, 2], [1, 1, 1], **settings) is None
    assert choose_groups([2, 2], [1, 1, 2], **settings) == [0, 1]
