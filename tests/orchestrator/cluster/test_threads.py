import pytest

from configs.load import load_config
from orchestrator.cluster.threads import FIXED_THREADS, NodeLoad, with_threads

ON_CPU = ["engine.num_threads=0", "learner.num_threads=0"]
ON_POLICY, ONE_STEP_OFF = "rl.max_staleness=0", "rl.max_staleness=1"


def threads(nodes: list[NodeLoad], *settings: str) -> tuple[int, int]:
    engine, learner = with_threads(load_config("quickstart", [*ON_CPU, *settings]), nodes)
    return engine.num_threads, learner.num_threads


def node(num_cores: float, num_engines: int, num_ranks: int) -> NodeLoad:
    return NodeLoad(num_cores=num_cores, num_engines=num_engines, num_ranks=num_ranks)


@pytest.mark.parametrize(
    ("nodes", "setting", "expected"),
    [
        ([node(8, 1, 1)], ON_POLICY, (8, 8)),
        ([node(8, 1, 1)], ONE_STEP_OFF, (4, 4)),
        ([node(2, 1, 1)], ONE_STEP_OFF, (1, 1)),
        # On-policy, sides take turns, but those of one side do not.
        ([node(12, 3, 2)], ON_POLICY, (4, 6)),
        ([node(12, 3, 2)], ONE_STEP_OFF, (2, 2)),
        # The fullest node decides for all of a side; where a side has none, it has no say.
        ([node(16, 1, 2), node(16, 3, 0)], ON_POLICY, (5, 8)),
        ([node(16, 1, 2), node(4, 4, 0)], ONE_STEP_OFF, (1, 5)),
        # Never none, however many share a core, and whole ones only.
        ([node(1, 4, 1)], ONE_STEP_OFF, (1, 1)),
        ([node(7.5, 2, 1)], ON_POLICY, (3, 7)),
    ],
)
def test_those_at_work_at_the_same_time_share_a_nodes_cores(nodes, setting, expected):
    assert threads(nodes, setting) == expected


def test_threads_that_are_set_stay():
    nodes = [node(8, 1, 1)]
    assert threads(nodes, ON_POLICY, "engine.num_threads=3", "learner.num_threads=5") == (3, 5)
    assert threads(nodes, ON_POLICY, "learner.num_threads=5") == (8, 5)


@pytest.mark.parametrize("num_cores", [1, 2, 64])
def test_a_deterministic_run_has_the_same_threads_on_every_machine(num_cores):
    found = threads([node(num_cores, 1, 1)], ON_POLICY, "run.deterministic=true")
    assert found == (FIXED_THREADS, FIXED_THREADS)


def test_who_computes_on_a_gpu_takes_no_cores_from_the_others():
    nodes = [node(8, 2, 4)]
    on_gpu = ("learner.num_gpus_per_rank=1", ONE_STEP_OFF)
    assert threads(nodes, *on_gpu) == (4, FIXED_THREADS)
