"""The RL loop with a learner, engines and a dispatcher written by hand: what happens step after step, in seconds."""

import signal
import zlib
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from actors import adapters
from actors.learner_group import LearnerLost
from actors.tokenizer import load_tokenizer
from actors.types import UpdateResult
from configs.load import load_config
from orchestrator.pipeline import is_done, run_stage
from orchestrator.record import checkpoint, events, ledger, run_files
from orchestrator.stage import Stage
from orchestrator.stages.train import train
from tests.fakes import FakeDispatcher, make_completion

NUM_STEPS = 4
START = adapters.pack({"a.lora_A.weight": torch.zeros(2, 2)}, {"r": 2}).tobytes()


class FakeLearner:
    """Its adapter is its version in numbers, its state the version in bytes."""

    def __init__(self, before_update=lambda version: None, lost=()):
        self.version, self.batches, self.before_update = 0, [], before_update
        self.held, self.lost = [], set(lost)

    def begin_stage(self, spec):
        self.version, self.spec = spec.policy_version, spec

    def load_state(self, blob):
        self.version = int(blob)

    def save_state(self):
        return str(self.version).encode()

    def hold(self, groups_per_rank):
        """Those whose completions are gone; each is lost once."""
        self.held += [[group.group_id for group in groups] for groups in groups_per_rank]
        lost = {group.group_id for groups in groups_per_rank for group in groups} & self.lost
        self.lost -= lost
        return lost

    def update(self, batch):
        self.before_update(self.version)
        self.batches.append(batch)
        self.version += 1
        return UpdateResult(policy_version=self.version, metrics={"train/loss": 0.5}, logprob_gap=0.001)

    def publish(self):
        tensor = torch.full((2, 2), 1.0 + self.version)
        packed = adapters.pack({"a.lora_A.weight": tensor}, {"r": 2}).tobytes()
        return adapters.make_ref(packed, self.version), packed


class FakeEngines:
    """Two engines; the logprobs of both depend on the adapter that was loaded last. `lost`: calls of `ask` in which the
    first one does not answer."""

    def __init__(self, lost=()):
        self.loaded, self.lost, self.num_asked = [], lost, 0
        self.generate = SimpleNamespace(remote=self.complete)

    def load_adapter(self, ref, packed):
        self.loaded.append((ref, packed))

    def ask(self, call):
        self.num_asked += 1
        names = ["second"] if self.num_asked in self.lost else ["first", "second"]
        return {(index, name): call(self) for index, name in enumerate(names)}

    def complete(self, prompt, n, sampling, version):
        (_, packed) = self.loaded[-1]
        logprob = -1.0 - zlib.crc32(packed) % 1000 / 1000
        return (replace(make_completion(num_tokens=2), behaviour_logprobs=np.full(2, logprob, dtype=np.float32)),)


class FakeCluster:
    def __init__(self, learner, rewards_of, engines=None):
        self.learner, self.engines = learner, engines or FakeEngines()
        self.evaluators = self.engines
        self.rewards_of, self.dispatchers, self.restarts = rewards_of, [], []

    def engines_asleep(self):
        return nullcontext()

    def fetch(self, reference):
        return reference

    def fetch_each(self, references):
        return references

    def load_adapter(self, ref, packed):
        self.engines.load_adapter(ref, packed)

    def make_dispatcher(self):
        self.dispatchers.append(StampingDispatcher(self))
        return self.dispatchers[-1]

    def restart_learner(self, cause):
        self.restarts.append(cause)
        self.learner = FakeLearner()


class StampingDispatcher(FakeDispatcher):
    """Groups carry the hash of the adapter that the engines were given under the request's version."""

    def __init__(self, cluster):
        super().__init__(cluster.rewards_of)
        self.cluster = cluster

    def wait(self):
        versions = {ref.version: ref.sha256 for ref, _ in self.cluster.engines.loaded}
        (request, *_) = sorted(self.requests, key=lambda request: request.request_id)
        self._sha256 = versions[request.version]
        return super().wait()


class FakeTracker:
    def __init__(self):
        self.steps = []

    def log_metrics(self, metrics, step):
        self.steps.append(step)

    def log_table(self, rows, name):
        pass

    def log_directory(self, path, folder):
        assert path.is_dir()


@pytest.fixture
def make_stage(tmp_path, tiny_model_dir):
    settings = (
        *(f"run.dir={tmp_path}", "run.name=loop", f"rl.num_steps={NUM_STEPS}", "rl.groups_per_step=2"),
        *("rl.group_size=2", "rl.checkpoint_every_steps=2"),
    )

    def make(learner=None, rewards_of=lambda index: (0.0, 1.0), engines=None, overrides=()):
        config = load_config("quickstart", [*settings, *overrides])
        config.run_dir.mkdir(exist_ok=True)
        cluster = FakeCluster(learner or FakeLearner(), rewards_of, engines)
        tokenizer = load_tokenizer(str(tiny_model_dir), config.model)
        return Stage(
            name="rl",
            config=config,
            cluster=cluster,
            tracker=FakeTracker(),
            tokenizer=tokenizer,
            base_dir=tiny_model_dir,
        )

    return make


def trained(stage):
    return [row["trained"] for row in ledger.read(stage.config.run_dir)]


def test_each_step_trains_the_next_groups_by_the_adapter_before_and_publishes_its_own(make_stage):
    stage = make_stage()
    train(stage, START)
    assert trained(stage) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    learner, engines = stage.cluster.learner, stage.cluster.engines
    assert [sorted(rows.group_id for rows in batch.rows_per_rank[0]) for batch in learner.batches] == trained(stage)
    assert {rows.places for batch in learner.batches for rows in batch.rows_per_rank[0]} == {(0, 1)}
    assert learner.spec.start_adapter == START
    # The probe and the way back come first; then every version, once.
    assert [ref.version for ref, _ in engines.loaded] == [0, -2, 0, 0, 1, 2, 3, 4]
    versions = [version for _, version in stage.cluster.dispatchers[0].submitted]
    assert versions == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert [path.name for path in checkpoint.list_checkpoints(stage.directory)] == ["step_000002", "step_000004"]
    assert stage.tracker.steps == [1, 2, 3, 4]
    assert is_done(stage.config, "rl")
    samples = run_files.read_lines(stage.config.run_dir / "samples" / "step_000004.jsonl")
    assert [row["reward"] for row in samples] == [0.0, 1.0] * 2


def test_a_constant_group_is_dropped_counted_and_replaced_by_the_next_prompt(make_stage):
    stage = make_stage(rewards_of=lambda index: (1.0, 1.0) if index in (0, 3) else (0.0, 1.0))
    train(stage, START)
    assert trained(stage) == [[1, 2], [4, 5], [6, 7], [8, 9]]
    assert [row["dropped"] for row in ledger.read(stage.config.run_dir)] == [[0], [3], [], []]
    rows = run_files.read_metrics(stage.config.run_dir)
    assert [row["rollout/dropped_constant"] for row in rows] == [1, 1, 0, 0]
    assert ledger.problems(ledger.read(stage.config.run_dir)) == []


def test_nothing_but_constant_groups_ends_the_run_with_a_reason(make_stage):
    stage = make_stage(rewards_of=lambda index: (1.0, 1.0), overrides=["rl.max_consecutive_drops=5"])
    with pytest.raises(RuntimeError, match="starved: 5 groups in a row had equal rewards"):
        train(stage, START)


def test_an_engine_that_is_lost_while_adapters_are_proved_stops_nothing(make_stage):
    stage = make_stage(engines=FakeEngines(lost=(2,)))
    train(stage, START)
    assert trained(stage) == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_groups_that_were_made_again_late_are_trained_on_once(make_stage):
    """As after the loss of an engine: the first wait brings nothing, and the oldest group comes last."""
    stage = make_stage()
    waits = iter([0])
    stage.cluster.make_dispatcher = lambda: dispatcher
    dispatcher = StampingDispatcher(stage.cluster)
    dispatcher._finish = max
    at_once = dispatcher.wait
    dispatcher.wait = lambda: [] if next(waits, None) == 0 else at_once()
    train(stage, START)
    assert trained(stage) == [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_a_group_whose_completions_went_with_a_node_is_made_again_and_trained_on_once(make_stage, max_staleness):
    stage = make_stage(FakeLearner(lost=(2, 5)), overrides=[f"rl.max_staleness={max_staleness}"])
    train(stage, START)
    rows = ledger.read(stage.config.run_dir)
    assert ledger.problems(rows) == []
    assert {2, 5} <= {index for row in rows for index in row["trained"]}
    assert [len(row["trained"]) for row in rows] == [2] * NUM_STEPS
    again = [row for row in events.read(stage.config.run_dir) if row["event"] == "redispatched"]
    assert [(row["group_id"], row["call"], row["cause"]) for row in again] == [
        (2, "generate", "completions lost"),
        (5, "generate", "completions lost"),
    ]
    submitted = stage.cluster.dispatchers[0].submitted
    assert Counter(index for index, _ in submitted).most_common(2) == [(2, 2), (5, 2)]


def test_completions_that_are_lost_again_and_again_end_the_run(make_stage, monkeypatch):
    stage = make_stage()
    monkeypatch.setattr(stage.cluster.learner, "hold", lambda groups_per_rank: {0})
    with pytest.raises(RuntimeError, match=r"completions of groups \[0\] were lost"):
        train(stage, START)


def test_an_interrupt_ends_the_step_saves_and_the_next_call_goes_on_from_there(make_stage):
    interrupted = make_stage(FakeLearner(lambda version: signal.raise_signal(signal.SIGINT) if version == 2 else None))
    with pytest.raises(KeyboardInterrupt):
        train(interrupted, START)
    assert trained(interrupted) == [[0, 1], [2, 3], [4, 5]]
    assert [path.name for path in checkpoint.list_checkpoints(interrupted.directory)] == ["step_000002", "step_000003"]
    assert not is_done(interrupted.config, "rl")
    resumed = make_stage()
    train(resumed, START)
    assert trained(resumed) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [ref.version for ref, _ in resumed.cluster.engines.loaded] == [3, -2, 3, 3, 4]
    assert resumed.cluster.learner.version == NUM_STEPS
    assert is_done(resumed.config, "rl")


def test_a_failure_loses_the_steps_after_the_last_checkpoint_and_no_prompt(make_stage):
    def fail(version):
        if version == 3:
            raise ValueError("loss is nan")

    with pytest.raises(ValueError, match="loss is nan"):
        train(make_stage(FakeLearner(fail)), START)
    stage = make_stage()
    train(stage, START)
    rows = ledger.read(stage.config.run_dir)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert ledger.problems(rows) == []


def test_a_lost_learner_is_started_again_and_goes_on_from_the_checkpoint(make_stage, monkeypatch):
    def lose(version):
        if version == 3:
            raise LearnerLost("learner rank 0 was lost in update")

    stage = make_stage(FakeLearner(lose))
    monkeypatch.setattr("orchestrator.pipeline.require_adapter", lambda config, name: START)
    run_stage(stage)
    assert stage.cluster.restarts == ["learner rank 0 was lost in update"]
    assert trained(stage) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    (resumed,) = [row for row in events.read(stage.config.run_dir) if row["event"] == "resumed"]
    assert resumed["step"] == 2


def test_a_learner_that_is_lost_again_and_again_ends_the_run(make_stage, monkeypatch):
    def lose(version):
        raise LearnerLost("gone")

    stage = make_stage(FakeLearner(lose), overrides=["cluster.max_learner_restarts=1"])
    monkeypatch.setattr("orchestrator.pipeline.require_adapter", lambda config, name: START)
    monkeypatch.setattr(stage.cluster, "restart_learner", lambda cause: None)
    with pytest.raises(RuntimeError, match=r"the learner was lost 2 times \(cluster.max_learner_restarts=1\): gone"):
        run_stage(stage)


def test_a_learner_that_skips_a_version_or_disagrees_with_the_engines_stops_the_run(make_stage):
    class Skips(FakeLearner):
        def update(self, batch):
            return replace(super().update(batch), policy_version=5)

    class Disagrees(FakeLearner):
        def update(self, batch):
            return replace(super().update(batch), logprob_gap=0.7)

    with pytest.raises(RuntimeError, match="expected policy version 1 after the update, got 5"):
        train(make_stage(Skips()), START)
    with pytest.raises(RuntimeError, match=r"engine and learner disagree .* 0\.7000 nats"):
        train(make_stage(Disagrees()), START)
