"""An evaluation beside training, on a real Ray with hand-written engines that are slow."""

import time
from types import SimpleNamespace

import pytest
import ray

from actors.tokenizer import load_tokenizer
from configs.load import load_config
from orchestrator.cluster.dispatcher import Dispatcher
from orchestrator.evaluation.held_out import HeldOut
from tests.fakes import make_ref
from tests.integration.fake_actors import make_engines, make_scorers

pytestmark = pytest.mark.integration
NUM_TASKS = 4


@pytest.fixture
def make_stage(ray_cluster, tiny_model_dir):
    config = load_config("quickstart", [f"evaluation.num_tasks={NUM_TASKS}", "evaluation.num_actors=1"])

    def make(has_own_engines):
        engines = make_engines({"is_open": False}, role="rollout actor")
        evaluators = make_engines({"is_open": False}, role="inference actor") if has_own_engines else engines
        scorers = make_scorers("works")
        for pool in (engines, evaluators, scorers):
            pool.wait_for(1)
        logged = []
        cluster = SimpleNamespace(engines=engines, evaluators=evaluators)
        cluster.make_evaluation_dispatcher = lambda: Dispatcher(evaluators, scorers, timeout_s=30)
        tracker = SimpleNamespace(log_metrics=lambda metrics, step: logged.append((step, metrics["eval/rl/accuracy"])))
        tokenizer = load_tokenizer(str(tiny_model_dir), config.model)
        return SimpleNamespace(config=config, cluster=cluster, tracker=tracker, tokenizer=tokenizer), logged

    return make


def list_loaded(engines):
    (versions,) = engines.ask(lambda actor: actor.list_loaded.remote()).values()
    return versions


def test_on_engines_of_its_own_it_goes_on_while_training_does(make_stage):
    stage, logged = make_stage(has_own_engines=True)
    with HeldOut(stage) as held_out:
        held_out.begin(make_ref(3), b"adapter")
        assert list_loaded(stage.cluster.evaluators) == [3]
        assert list_loaded(stage.cluster.engines) == [], "training's engines need not hold it"
        for _ in range(3):
            held_out.advance()
        assert logged == []
        ray.get(stage.cluster.evaluators.handle(0).open.remote())
        deadline = time.monotonic() + 30
        while not logged and time.monotonic() < deadline:
            held_out.advance()
            time.sleep(0.01)
        assert logged == [(3, 1.0)]
    assert len(logged) == 1


def test_the_next_one_and_the_end_of_training_wait_for_it(make_stage):
    stage, logged = make_stage(has_own_engines=True)
    ray.get(stage.cluster.evaluators.handle(0).open.remote())
    with HeldOut(stage) as held_out:
        held_out.begin(make_ref(3), b"adapter")
        held_out.begin(make_ref(6), b"adapter")
        assert [step for step, _ in logged] == [3]
    assert [step for step, _ in logged] == [3, 6]
    assert list_loaded(stage.cluster.evaluators) == [3, 6]


def test_on_the_rollout_engines_training_waits(make_stage):
    stage, logged = make_stage(has_own_engines=False)
    ray.get(stage.cluster.engines.handle(0).open.remote())
    with HeldOut(stage) as held_out:
        held_out.begin(make_ref(3), b"adapter")
        assert [step for step, _ in logged] == [3]
    assert list_loaded(stage.cluster.engines) == [], "they hold it already"


def test_after_an_error_nobody_waits(make_stage):
    stage, logged = make_stage(has_own_engines=True)
    with pytest.raises(ValueError, match="of training"), HeldOut(stage) as held_out:  # noqa: PT012
        held_out.begin(make_ref(3), b"adapter")
        raise ValueError("of training")
    assert logged == []
