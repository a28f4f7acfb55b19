"""An evaluation beside training, on a real Ray with hand-written engines that are slow."""

import time
from types import SimpleNamespace

import pytest
import ray

from actors.tokenizer import load_tokenizer
from configs.load import load_config
from orchestrator.cluster.inference_pool import InferencePool
from orchestrator.evaluation.held_out import HeldOut
from tests.fakes import make_actor_pool, make_ref
from tests.integration.test_inference_pool import Engine, Scorer

pytestmark = pytest.mark.integration
NUM_TASKS = 4


class SlowEngine(Engine):
    """Says nothing until it is told to."""

    def __init__(self):
        super().__init__()
        self.is_open = False

    def infer(self, *arguments):
        while not self.is_open:
            time.sleep(0.01)
        return super().infer(*arguments)

    def open(self):
        self.is_open = True


@pytest.fixture
def make_stage(ray_cluster, tiny_model_dir):
    config = load_config("quickstart", [f"evaluation.num_tasks={NUM_TASKS}", "evaluation.num_actors=1"])

    def make(has_own_engines):
        engines = make_actor_pool("rollout actor", lambda index: make_actor(SlowEngine), 1)
        evaluators = make_actor_pool("inference actor", lambda index: make_actor(SlowEngine), 1)
        scorers = make_actor_pool("reward actor", lambda index: make_actor(Scorer), 1)
        loaded, logged = [], []
        cluster = SimpleNamespace(
            engines=engines,
            evaluators=evaluators if has_own_engines else engines,
            load_adapter=lambda ref, packed, pools: loaded.append((ref.version, [pool.role for pool in pools])),
        )
        cluster.make_inference_pool = lambda: InferencePool(cluster.evaluators, scorers, timeout_s=30)
        tracker = SimpleNamespace(log_metrics=lambda metrics, step: logged.append((step, metrics["eval/rl/accuracy"])))
        tokenizer = load_tokenizer(str(tiny_model_dir), config.model)
        return SimpleNamespace(config=config, cluster=cluster, tracker=tracker, tokenizer=tokenizer), loaded, logged

    return make


def make_actor(cls):
    # Two calls at once: one waits inside `infer`.
    return ray.remote(cls).options(num_cpus=0.1, max_concurrency=NUM_TASKS + 2).remote()


def test_on_engines_of_its_own_it_goes_on_while_training_does(make_stage):
    stage, loaded, logged = make_stage(has_own_engines=True)
    with HeldOut(stage) as held_out:
        held_out.begin(make_ref(3), b"adapter")
        assert loaded == [(3, ["inference actor"])], "training's engines need not hold it"
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
    stage, loaded, logged = make_stage(has_own_engines=True)
    ray.get(stage.cluster.evaluators.handle(0).open.remote())
    with HeldOut(stage) as held_out:
        held_out.begin(make_ref(3), b"adapter")
        held_out.begin(make_ref(6), b"adapter")
        assert [step for step, _ in logged] == [3]
    assert [step for step, _ in logged] == [3, 6]
    assert [version for version, _ in loaded] == [3, 6]


def test_on_the_rollout_engines_training_waits(make_stage):
    stage, loaded, logged = make_stage(has_own_engines=False)
    ray.get(stage.cluster.engines.handle(0).open.remote())
    with HeldOut(stage) as held_out:
        held_out.begin(make_ref(3), b"adapter")
        assert [step for step, _ in logged] == [3]
    assert loaded == [], "they hold it already"


def test_after_an_error_nobody_waits(make_stage):
    stage, _, logged = make_stage(has_own_engines=True)
    with pytest.raises(ValueError, match="of training"), HeldOut(stage) as held_out:  # noqa: PT012
        held_out.begin(make_ref(3), b"adapter")
        raise ValueError("of training")
    assert logged == []
