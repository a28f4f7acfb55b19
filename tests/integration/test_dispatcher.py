"""The dispatcher on a real Ray, with hand-written actors that fail: training groups and evaluations."""

import threading

import pytest
import ray

from actors.types import HardCap
from orchestrator.cluster.dispatcher import Dispatcher, is_lost_actor
from orchestrator.evaluation.evaluate import evaluate_caps, make_record
from tests.fakes import make_request
from tests.integration.fake_actors import Ledger, make_engines, make_scorers

pytestmark = pytest.mark.integration


def make_dispatcher(engines, scorers=None, timeout_s=60.0):
    again = []
    scorers = scorers or make_scorers("works")
    dispatcher = Dispatcher(engines, scorers, timeout_s, on_redispatch=again.append)
    engines.wait_for(1)
    scorers.wait_for(1)
    return dispatcher, again


def submit(dispatcher, *indices):
    for index in indices or (0,):
        dispatcher.submit(make_request(request_id=index))


def finish(dispatcher):
    """Everything in flight: (request id, version, group size), sorted."""
    seen = []
    while dispatcher.num_in_flight:
        for finished in dispatcher.wait():
            (version,) = {rollout.policy_version for rollout in finished.rollouts}
            seen.append((finished.request.request_id, version, len(finished.rollouts)))
    return sorted(seen)


def whole(num_groups):
    return [(group_id, 7, 3) for group_id in range(num_groups)]


def evaluation(num, **settings):
    return [make_request(request_id=index, returns="samples", **settings) for index in range(num)]


def task_ids(num):
    return [f"fake/{index}" for index in range(num)]


def list_scored(scorers):
    return sorted(task_id for handle in scorers.handles for task_id in ray.get(handle.list_scored.remote()))


def test_groups_come_back_whole_and_once(ray_cluster):
    dispatcher, again = make_dispatcher(make_engines("works", "works"))
    submit(dispatcher, *range(10))
    assert finish(dispatcher) == whole(10)
    assert again == []


def test_a_failing_call_is_named_with_its_own_words_and_not_repeated(ray_cluster):
    ledger = Ledger.remote()
    dispatcher, _ = make_dispatcher(make_engines("fails", ledger=ledger))
    submit(dispatcher)
    with pytest.raises(RuntimeError, match=r"group 0 was lost: .*no such prompt"):
        dispatcher.wait()
    assert len(ray.get(ledger.read.remote())) == 1


@pytest.mark.parametrize("behaviour", ["dies", "loses its engine"])
def test_an_engine_that_is_lost_is_replaced_and_its_groups_come_back_once(ray_cluster, behaviour):
    losses = []
    engines = make_engines(behaviour, "works", on_loss=losses.append)
    dispatcher, again = make_dispatcher(engines)
    engines.wait_for(2)
    submit(dispatcher, *range(6))
    assert finish(dispatcher) == whole(6)
    assert [loss.index for loss in losses] == [0]
    assert {(item.call, item.attempt) for item in again} == {("generate", 2)}
    engines.wait_for(2)
    assert {engines.load_of(index) for index in range(len(engines))} == {0}
    submit(dispatcher, 0, 1)
    assert finish(dispatcher) == whole(2)


def test_groups_wait_for_the_only_engine_to_come_back(ray_cluster):
    dispatcher, again = make_dispatcher(make_engines("dies"))
    submit(dispatcher)
    assert finish(dispatcher) == whole(1)
    assert len(again) == 1


def test_a_group_that_loses_every_engine_ends_the_run(ray_cluster):
    dispatcher, _ = make_dispatcher(make_engines("dies", after="dies"))
    submit(dispatcher)
    with pytest.raises(RuntimeError, match="group 0 was lost: 3 attempts to generate it failed"):
        finish(dispatcher)


def test_a_lost_scorer_costs_no_second_generation(ray_cluster):
    ledger = Ledger.remote()
    dispatcher, again = make_dispatcher(make_engines("works", ledger=ledger), make_scorers("dies"))
    submit(dispatcher, *range(4))
    assert finish(dispatcher) == whole(4)
    assert sorted(ray.get(ledger.read.remote())) == task_ids(4)
    assert {item.call for item in again} == {"score"}


def test_a_hung_engine_is_told_from_a_slow_one_and_replaced(ray_cluster, monkeypatch):
    monkeypatch.setattr("orchestrator.cluster.dispatcher.WATCH_AFTER_S", 0.5)
    losses = []
    dispatcher, _ = make_dispatcher(make_engines("hangs", heartbeat_timeout_s=2.0, on_loss=losses.append))
    submit(dispatcher)
    assert finish(dispatcher) == whole(1)
    assert [loss.cause for loss in losses] == ["no sign of life for 2 s"]


def test_a_slow_engine_is_kept_until_the_timeout_which_says_what_is_waited_for(ray_cluster, monkeypatch):
    monkeypatch.setattr("orchestrator.cluster.dispatcher.WATCH_AFTER_S", 0.5)
    losses = []
    engines = make_engines("is slow", heartbeat_timeout_s=2.0, on_loss=losses.append)
    dispatcher, _ = make_dispatcher(engines, timeout_s=6)
    submit(dispatcher)
    with pytest.raises(RuntimeError, match=r"no progress for 6 s; 1 groups in generate \(oldest \d+ s\)"):
        dispatcher.wait()
    assert losses == []


def test_time_in_which_nobody_waited_is_no_time_without_progress(ray_cluster):
    """As with groups in flight during a long update."""
    engines = make_engines({"is_open": False})
    dispatcher, _ = make_dispatcher(engines, timeout_s=60)
    submit(dispatcher)
    dispatcher._last_progress_s -= 3600
    # Longer than one look at what is ready.
    opening = threading.Timer(3.0, lambda: ray.get(engines.handle(0).open.remote()))
    opening.start()
    assert finish(dispatcher) == whole(1)
    opening.join()


def test_more_losses_than_allowed_end_the_run(ray_cluster):
    dispatcher, _ = make_dispatcher(make_engines("dies", max_losses=0))
    submit(dispatcher)
    with pytest.raises(RuntimeError, match=r"1 losses \(cluster.max_actor_losses=0\), the last one of actor 0"):
        finish(dispatcher)


def test_an_actor_that_ray_ends_because_its_node_is_out_of_memory_counts_as_lost():
    assert is_lost_actor(ray.exceptions.OutOfMemoryError("the node is low on memory"))
    assert is_lost_actor(ray.exceptions.ActorDiedError())
    assert not is_lost_actor(ray.exceptions.GetTimeoutError("late"))


def test_an_evaluation_comes_back_in_order_as_samples_without_tokens(ray_cluster):
    scorers = make_scorers("works")
    dispatcher, _ = make_dispatcher(make_engines("works", "works"), scorers)
    finished = dispatcher.run(evaluation(20))
    records = [make_record(one) for one in finished]
    assert [record.task_id for record in records] == task_ids(20)
    assert {(record.n, record.mode, len(record.correct), record.tokens) for record in records} == {
        (3, "reasoning", 3, (4, 4, 4))
    }
    assert list_scored(scorers) == sorted(task_ids(20))
    assert not any(hasattr(sample, "token_ids") for one in finished for sample in one.samples)
    with pytest.raises(ValueError, match="request 0: expected one for rollouts, got one for samples"):
        _ = finished[0].rollouts


def test_a_cap_cuts_the_very_completions_of_before(ray_cluster):
    ledger = Ledger.remote()
    dispatcher, _ = make_dispatcher(make_engines("works", ledger=ledger))
    drafts = dispatcher.run(evaluation(3))
    cap = HardCap(num_tokens=2, forced_token_ids=None, answer_tokens=1)
    records = evaluate_caps(dispatcher, drafts, [cap, cap])
    assert [record.task_id for record in records] == task_ids(3) * 2
    assert {record.cap for record in records} == {2}
    again = dispatcher.run([make_request(returns="samples", cap=cap)], drafts[:1])
    assert [sample.text for sample in again[0].samples] == ["2 cut"] * 3
    with pytest.raises(ValueError, match="expected 1 finished requests to cut, got 2"):
        dispatcher.run(evaluation(1), drafts[:2])


def test_completions_to_cut_that_went_with_their_node_are_made_again(ray_cluster):
    ledger = Ledger.remote()
    dispatcher, again = make_dispatcher(make_engines({"lost": 2}, ledger=ledger))
    drafts = dispatcher.run(evaluation(1))
    cap = HardCap(num_tokens=2, forced_token_ids=None, answer_tokens=1)
    (record,) = evaluate_caps(dispatcher, drafts, [cap])
    assert (record.task_id, record.cap, record.n) == ("fake/0", 2, 3)
    # The draft, the cut that misses it, the draft again, the cut.
    assert ray.get(ledger.read.remote()) == ["fake/0"] * 4
    assert len(again) == 1


@pytest.mark.parametrize("others", [[], ["works"]])
def test_an_engine_killed_in_the_middle_costs_no_task_and_none_is_scored_twice(ray_cluster, others):
    scorers = make_scorers("works")
    dispatcher, _ = make_dispatcher(make_engines({"fuse": 6}, *others), scorers)
    finished = dispatcher.run(evaluation(30))
    assert [one.request.task.task_id for one in finished] == task_ids(30)
    assert [len(one.samples) for one in finished] == [3] * 30
    assert list_scored(scorers) == sorted(task_ids(30))


def test_completions_that_went_with_their_node_are_made_again_and_the_actors_stay(ray_cluster):
    scorers, ledger = make_scorers({"lost": 2}), Ledger.remote()
    engines = make_engines("works", ledger=ledger)
    dispatcher, again = make_dispatcher(engines, scorers)
    assert [one.request.task.task_id for one in dispatcher.run(evaluation(4))] == task_ids(4)
    assert list_scored(scorers) == sorted(task_ids(4))
    assert len(ray.get(ledger.read.remote())) == 5
    assert [(item.call, item.attempt) for item in again] == [("generate", 2)]
    assert engines.num_replacing == scorers.num_replacing == 0


def test_a_lost_reward_actor_costs_no_task(ray_cluster):
    dispatcher, _ = make_dispatcher(make_engines("works"), make_scorers({"fuse": 3}, "works"))
    assert [one.request.task.task_id for one in dispatcher.run(evaluation(12))] == task_ids(12)


def test_requests_without_completions_are_not_scored(ray_cluster):
    scorers = make_scorers("works")
    dispatcher, _ = make_dispatcher(make_engines("works"), scorers)
    assert [one.samples for one in dispatcher.run(evaluation(3, n=0))] == [(), (), ()]
    assert list_scored(scorers) == []


def test_answers_are_grouped_task_by_task_over_all_reward_actors(ray_cluster):
    dispatcher, _ = make_dispatcher(make_engines("works"), make_scorers("works", "works"))
    answers = [[str(task), "x", str(task), ""] for task in range(200)]
    assert dispatcher.group_answers(answers) == [(0, 1, 0, -1)] * 200


def test_what_is_cancelled_does_not_come_back(ray_cluster):
    engines = make_engines({"is_open": False})
    dispatcher, _ = make_dispatcher(engines)
    submit(dispatcher, 0, 1)
    assert dispatcher.num_in("generate") == 2
    dispatcher.cancel()
    # The actor itself is not asked again: Ray numbers the calls of one that answers in order, and a cancelled one is missing.
    assert dispatcher.num_in_flight == 0
    assert dispatcher.wait() == []
    assert {engines.load_of(index) for index in range(len(engines))} == {0}
